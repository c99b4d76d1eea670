"""LoraModel: the user's model with its targets replaced by LoraLayers, and the switching between adapters."""

import contextlib
import warnings

import torch
from torch import nn

from ..nn.init import check_weight
from .config import LoraConfig
from .lora_layer import BASE, LoraLayer, frozen_weight, unwrap, wrap
from .saved_module import SavedModule
from .targets import find_modules_to_save, find_targets, resolve_targets


class LoraModel(nn.Module):
    """Holds the user's model as `.model`, as PEFT's tuner of the same name does: names begin `base_model.model.`."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.peft_config: dict[str, LoraConfig] = {}
        self.active_adapters: list[str] = []
        self.enabled = True

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)

    def layers(self) -> list[LoraLayer | SavedModule]:
        return [m for m in self.model.modules() if isinstance(m, (LoraLayer, SavedModule))]

    def lora_layers(self) -> list[LoraLayer]:
        return [m for m in self.layers() if isinstance(m, LoraLayer)]

    def plan(self, config):
        """(targets, names of modules to save) of a config on this model; raises before anything is changed."""
        modules = self.own_modules()
        targets = find_targets(self.model, modules, config)
        for target in targets:
            check_weight(config.init_lora_weights, target.r, frozen_weight(modules[target.name]))
        saved = find_modules_to_save(self.model, modules, config)
        adapted = {t.name for t in targets} | {n for n, m in modules.items() if isinstance(m, LoraLayer)}
        for name in saved:
            both = sorted(other for other in adapted if f"{other}.".startswith(f"{name}."))
            if both:
                raise ValueError(f"modules_to_save={config.modules_to_save} matches {name}, but {both[0]} is adapted")
        return targets, saved

    def own_modules(self) -> dict[str, nn.Module]:
        """The model's modules by name, without those inside a LoraLayer or a SavedModule."""
        inside: list[str] = []
        modules = {}
        for name, module in self.model.named_modules():
            if name and not name.startswith(tuple(inside)):
                modules[name] = module
                if isinstance(module, (LoraLayer, SavedModule)):
                    inside.append(f"{name}.")
        return modules

    def inject(self, adapter, config, autocast_adapter_dtype=True):
        """Adds an adapter to every target of its config, which then says what was found; it is not yet active."""
        targets, saved = self.plan(config)
        config.target_modules = resolve_targets(self.model, self.own_modules(), config)
        first = not self.layers()
        if first:
            self.model.requires_grad_(False)
        for target in targets:
            layer = wrap(self.model.get_submodule(target.name))
            self.model.set_submodule(target.name, layer)
            half = layer.weight.dtype in (torch.float16, torch.bfloat16)
            dtype = torch.float32 if half and autocast_adapter_dtype else layer.weight.dtype
            layer.add(adapter, target, config.lora_dropout, config.init_lora_weights, dtype)
            config.fan_in_fan_out = not isinstance(layer, nn.Linear)  # PEFT reads a Conv1D's adapter by this
        for name in saved:
            module = self.model.get_submodule(name)
            if not isinstance(module, SavedModule):
                module = SavedModule(module)
                self.model.set_submodule(name, module)
            module.add(adapter)

    # Switching

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Makes this adapter (or these, summed) what forward applies; only active adapters require gradients.

        Merged adapters are taken out of the weights first, with a warning, as PEFT does.

        Raises ValueError, before anything is changed, for an unknown adapter, and for several that each have a copy of
        one module in modules_to_save.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        if not names:
            raise ValueError("set_adapter needs at least one adapter; use disable_adapter() for none")
        for name in names:
            self.check_known(name)
        for layer in self.layers():
            copies = [name for name in names if isinstance(layer, SavedModule) and name in layer.modules_to_save]
            if len(copies) > 1:
                kind = type(layer.original_module).__name__
                raise ValueError(f"{' and '.join(copies)} each have a {kind} in modules_to_save; activate one of them")
        if any(layer.merged for layer in self.lora_layers()):
            warnings.warn("set_adapter takes the merged adapters out of the weights first", stacklevel=3)
            self.unmerge()
        for name in names:
            self.peft_config[name].inference_mode = inference_mode
        self.active_adapters = names
        self.update()

    def check_known(self, name):
        if name not in self.peft_config:
            raise ValueError(f"there is no adapter {name!r}; there are {', '.join(self.peft_config) or 'none'}")

    def update(self):
        """Tells every layer which adapters are active, and every parameter whether it trains."""
        names, configs = self.active_adapters, self.peft_config
        trainable = not any(configs[name].inference_mode for name in names)
        self._tell_layers()
        for layer in self.layers():
            for holder in _holders(layer):
                for name, module in holder.items():
                    module.requires_grad_(trainable and name in names)
        self._train_biases({configs[name].bias for name in names} if trainable else set())

    def _train_biases(self, kinds):
        own = [m for m in self.own_modules().values() if not isinstance(m, SavedModule)]
        for module in own:
            bias = getattr(module, "bias", None)
            if isinstance(bias, nn.Parameter):
                bias.requires_grad_("all" in kinds or "lora_only" in kinds and isinstance(module, LoraLayer))

    def _tell_layers(self):
        for layer in self.layers():
            layer.active = list(self.active_adapters) if self.enabled else []

    def disable_adapter_layers(self) -> None:
        """The base model alone, until enable_adapter_layers; merged adapters are taken out of the weights."""
        self.unmerge()
        self.enabled = False
        self._tell_layers()

    def enable_adapter_layers(self) -> None:
        self.enabled = True
        self._tell_layers()

    @contextlib.contextmanager
    def disabled(self):
        """The base model alone, within the block; merged adapters are taken out and merged again after it.

        Not merged again if the block made other adapters active: what is merged would hide them.
        """
        was, active = self.enabled, self.active_adapters
        merged = [(layer, list(layer.merged)) for layer in self.lora_layers()]
        self.disable_adapter_layers()
        try:
            yield
        finally:
            self.enabled = was
            self._tell_layers()
            for layer, names in merged if self.active_adapters == active else ():
                layer.merge(names)

    @contextlib.contextmanager
    def rows(self, adapter_names, batch_size=None):
        """Within the block row i of a batch gets the adapter adapter_names[i]; "__base__" is none.

        While adapters are disabled every row gets none. batch_size: of the batch, where the caller knows it.

        Raises TypeError if adapter_names is no list, ValueError if it names an unknown adapter or not one a row, and
        in training mode.
        """
        if not isinstance(adapter_names, (list, tuple)):
            raise TypeError(f"adapter_names={adapter_names!r} must be a list of names, one a row of the batch")
        if batch_size is not None and len(adapter_names) != batch_size:
            raise ValueError(
                f"adapter_names has {len(adapter_names)} names for a batch of {batch_size} rows; give one a row"
            )
        unknown = sorted(set(adapter_names) - {*self.peft_config, BASE})
        if unknown:
            raise ValueError(f"adapter_names names {unknown[0]!r}; there are {', '.join(self.peft_config)} and {BASE}")
        if self.training:
            raise ValueError("adapter_names is for inference: call model.eval() first")
        for layer in self.layers():
            layer.rows = list(adapter_names) if self.enabled else None
        try:
            yield
        finally:
            for layer in self.layers():
                layer.rows = None

    def delete(self, adapter):
        """Removes an adapter; a layer left without any stays wrapped and computes what the frozen one does."""
        for layer in self.layers():
            if isinstance(layer, LoraLayer) and adapter in layer.merged:
                others = [name for name in layer.merged if name != adapter]
                layer.unmerge()
                layer.merge(others)
            layer.remove(adapter)
        del self.peft_config[adapter]
        self.active_adapters = [name for name in self.active_adapters if name != adapter]

    def merge(self, names=None, safe=False):
        """Folds adapters (default: the active ones) into the weights; if that fails, none of them stays folded."""
        layers = self.lora_layers()
        before = [layer.merge_state() for layer in layers]
        try:
            for layer in layers:
                layer.merge(self.active_adapters if names is None else names, safe)
        except ValueError:
            for layer, state in zip(layers, before, strict=True):
                layer.restore(state)
            raise

    def unmerge(self):
        for layer in self.lora_layers():
            layer.unmerge()

    def unload(self, names=None) -> nn.Module:
        """The user's model with plain layers again, and for each saved module the copy of the named adapters.

        Default: the active ones. Where none of them has a copy the original stays.
        """
        for name, module in list(self.model.named_modules()):
            if isinstance(module, LoraLayer):
                self.model.set_submodule(name, unwrap(module))
            elif isinstance(module, SavedModule):
                self.model.set_submodule(name, module.current(names))
        return self.model


def _holders(layer):
    return (layer.lora_A, layer.lora_B) if isinstance(layer, LoraLayer) else (layer.modules_to_save,)
