"""Tuner: the user's model with adapters of any method in it, and the switching between them."""

import contextlib
import warnings

from torch import nn

from . import gated_mlp, lora
from .config import PeftConfig
from .layer import BASE, AdapterLayer
from .linear_layer import AdaptedLayer
from .registry import method_of
from .saved_module import SavedModule
from .targets import find_modules_to_save


class Tuner(nn.Module):
    """Holds the user's model as `.model`, as PEFT's tuners do: names begin `base_model.model.`."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.peft_config: dict[str, PeftConfig] = {}
        self.active_adapters: list[str] = []
        self.enabled = True
        self.prompts = None  # the PromptLayer, once an adapter adds virtual tokens

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)

    def layers(self) -> list[AdapterLayer]:
        """Every module that holds adapters."""
        return [m for m in self.modules() if isinstance(m, AdapterLayer)]

    def linear_layers(self) -> list[AdaptedLayer]:
        return [m for m in self.layers() if isinstance(m, AdaptedLayer)]

    def mergeable(self):
        """The layers whose adapters can be folded into the model's own parameters."""
        return [m for m in self.layers() if hasattr(m, "merge")]

    def plan(self, config):
        """(the method's targets, names of modules to save) of a config on this model; raises, changes nothing."""
        targets = method_of(config).plan(self, config)
        modules = self.own_modules()
        saved = find_modules_to_save(self.model, modules, config)
        adapted = {t.name for t in targets}
        adapted |= {n for n, m in modules.items() if isinstance(m, AdapterLayer) and not isinstance(m, SavedModule)}
        for name in saved:
            both = sorted(other for other in adapted if f"{other}.".startswith(f"{name}."))
            if both:
                raise ValueError(f"modules_to_save={config.modules_to_save} matches {name}, but {both[0]} is adapted")
        return targets, saved

    def own_modules(self) -> dict[str, nn.Module]:
        """The model's modules by name, without those inside a module that holds adapters."""
        inside: list[str] = []
        modules = {}
        for name, module in self.model.named_modules():
            if name and not name.startswith(tuple(inside)):
                modules[name] = module
                if isinstance(module, AdapterLayer):
                    inside.append(f"{name}.")
        return modules

    def inject(self, adapter, config, autocast_adapter_dtype=True, fresh=True):
        """Adds an adapter to every target of its config, which then says what was found; it is not yet active.

        fresh: its values are to be trained; else a file's will replace them.
        """
        method = method_of(config)
        targets, saved = self.plan(config)
        method.complete(self, config, targets)
        method.add(self, adapter, config, targets, autocast_adapter_dtype, fresh)
        gated_mlp.refresh(self.model)
        if not self.peft_config:
            self.model.requires_grad_(False)
        for name in saved:
            module = self.model.get_submodule(name)
            if not isinstance(module, SavedModule):
                module = SavedModule(module)
                self.model.set_submodule(name, module)
            module.add(adapter)
        self.peft_config[adapter] = config
        self.update()

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
            reason = layer.clash(names)
            if reason:
                raise ValueError(reason)
        if any(layer.merged for layer in self.mergeable()):
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
            for name, held in layer.held():
                held.requires_grad_(trainable and name in names)
        lora.train_biases(self, {getattr(configs[name], "bias", "none") for name in names} if trainable else set())

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
        merged = [(layer, list(layer.merged)) for layer in self.mergeable()]
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
            if adapter in getattr(layer, "merged", ()):
                others = [name for name in layer.merged if name != adapter]
                layer.unmerge()
                layer.merge(others)
            layer.remove(adapter)
        gated_mlp.refresh(self.model)
        del self.peft_config[adapter]
        self.active_adapters = [name for name in self.active_adapters if name != adapter]

    def merge(self, names=None, safe=False):
        """Folds adapters (default: the active ones) into the weights; if that fails, none of them stays folded.

        Raises ValueError for virtual tokens, which are no part of the weights, and for what a layer cannot fold.
        """
        names = self.active_adapters if names is None else names
        for name in names:
            if self.peft_config[name].SEQUENCE_METHOD:
                raise ValueError(f"{name!r} puts virtual tokens before the text, which cannot be merged into weights")
        layers = self.mergeable()
        before = [layer.merge_state() for layer in layers]
        try:
            for layer in layers:
                layer.merge(names, safe)
        except ValueError:
            for layer, state in zip(layers, before, strict=True):
                layer.restore(state)
            raise

    def unmerge(self):
        for layer in self.mergeable():
            layer.unmerge()

    def unload(self, names=None) -> nn.Module:
        """The user's model with plain layers again, and for each saved module the copy of the named adapters.

        Default: the active ones. Where none of them has a copy the original stays.
        """
        for name, module in list(self.model.named_modules()):
            if isinstance(module, AdapterLayer):
                self.model.set_submodule(name, module.replacement(names))
        if self.prompts is not None:
            self.prompts.release()
        return self.model
