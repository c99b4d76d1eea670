"""LoraModel: the user's model with its targets replaced by LoraLayers, and the switching between adapters."""

import contextlib

import torch
from torch import nn

from ..nn.init import check_rank
from .lora_layer import BASE, LoraLayer, frozen_weight, unwrap, wrap
from .saved_module import SavedModule
from .targets import find_modules_to_save, find_targets, resolve_targets


class LoraModel(nn.Module):
    """Holds the user's model as `.model`, as PEFT's tuner of the same name does: names begin `base_model.model.`."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.active: list[str] = []
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
        modules = self._own_modules()
        targets = find_targets(self.model, modules, config)
        for target in targets:
            check_rank(config.init_lora_weights, target.r, modules[target.name].weight.shape)
        return targets, find_modules_to_save(self.model, modules, config)

    def _own_modules(self) -> dict[str, nn.Module]:
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
        config.target_modules = resolve_targets(self.model, self._own_modules(), config)
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

    # What an adapter's file holds, by PEFT's names: its lora_A and lora_B, trained biases, modules saved whole.

    def expected(self, config) -> dict[str, torch.Size]:
        """{name: shape} in the file of an adapter of this config on this model, whether it is there yet or not."""
        targets, saved = self.plan(config)
        names = {t.name for t in targets}
        shapes = {}
        for target in targets:
            layer = self.model.get_submodule(target.name)
            N, K = frozen_weight(layer).shape
            shapes[f"{target.name}.lora_A.weight"] = torch.Size([target.r, K])
            shapes[f"{target.name}.lora_B.weight"] = torch.Size([N, target.r])
        shapes |= {key: p.shape for key, p in self._biases(config.bias, names).items()}
        for name in saved:
            module = self.model.get_submodule(name)
            module = module.original_module if isinstance(module, SavedModule) else module
            shapes |= {f"{name}.{key}": t.shape for key, t in module.state_dict().items()}
        return shapes

    def tensors(self, adapter, config) -> dict[str, torch.Tensor]:
        """{name: the tensor itself} of an adapter of this model."""
        tensors, names = {}, set()
        for name, module in self._own_modules().items():
            if isinstance(module, LoraLayer) and adapter in module.lora_A:
                names.add(name)
                tensors[f"{name}.lora_A.weight"] = module.lora_A[adapter].weight
                tensors[f"{name}.lora_B.weight"] = module.lora_B[adapter].weight
            elif isinstance(module, SavedModule) and adapter in module.modules_to_save:
                copied = module.modules_to_save[adapter].state_dict()
                tensors |= {f"{name}.{key}": t for key, t in copied.items()}
        return tensors | self._biases(config.bias, names)

    def _biases(self, kind, targets) -> dict[str, torch.Tensor]:
        """The biases that bias="all" or "lora_only" trains; PEFT keeps an adapted layer's under base_layer."""
        found = {}
        for name, module in self._own_modules().items() if kind != "none" else ():
            bias = getattr(module, "bias", None)
            if isinstance(module, SavedModule) or not isinstance(bias, nn.Parameter):
                continue
            adapted = name in targets or isinstance(module, LoraLayer)
            if kind == "all" or adapted:
                found[f"{name}.base_layer.bias" if adapted else f"{name}.bias"] = bias
        return found

    # Switching

    def set_adapter(self, names: list[str], configs, trainable=True):
        """Makes these adapters the ones that forward applies, and the only ones with requires_grad, if trainable."""
        self.active = list(names)
        self._apply_state()
        for layer in self.layers():
            for holder in _holders(layer):
                for name, module in holder.items():
                    module.requires_grad_(trainable and name in names)
        self._train_biases([configs[name].bias for name in names if name in configs] if trainable else [])

    def _train_biases(self, kinds):
        adapters = {id(p) for layer in self.layers() for holder in _holders(layer) for p in holder.parameters()}
        for name, parameter in self.model.named_parameters():
            if name.rpartition(".")[2] == "bias" and id(parameter) not in adapters:
                parameter.requires_grad_("all" in kinds)
        if "lora_only" in kinds:
            for layer in self.lora_layers():
                if layer.bias is not None:
                    layer.bias.requires_grad_(True)

    def _apply_state(self):
        for layer in self.layers():
            layer.active = list(self.active) if self.enabled else []

    @contextlib.contextmanager
    def disabled(self):
        """The base model alone, within the block; merged adapters are taken out and merged again after it."""
        was, self.enabled = self.enabled, False
        merged = {id(layer): list(layer.merged) for layer in self.lora_layers()}
        for layer in self.lora_layers():
            layer.unmerge()
        self._apply_state()
        try:
            yield
        finally:
            self.enabled = was
            self._apply_state()
            for layer in self.lora_layers():
                layer.merge(merged.get(id(layer), []))

    @contextlib.contextmanager
    def rows(self, adapter_names, known):
        """Within the block row i of a batch gets the adapter adapter_names[i]; "__base__" is none."""
        unknown = sorted(set(adapter_names) - {*known, BASE})
        if unknown:
            raise ValueError(f"adapter_names names {unknown[0]!r}; there are {', '.join(known)} and {BASE}")
        if self.training:
            raise ValueError("adapter_names is for inference: call model.eval() first")
        for layer in self.layers():
            layer.rows = list(adapter_names)
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
        self.active = [name for name in self.active if name != adapter]

    def merge(self, names=None, safe=False):
        for layer in self.lora_layers():
            layer.merge(self.active if names is None else names, safe)

    def unmerge(self):
        for layer in self.lora_layers():
            layer.unmerge()

    def unload(self, names=None) -> nn.Module:
        """The user's model with plain layers again; a saved module's active copy takes the original's place."""
        for name, module in list(self.model.named_modules()):
            if isinstance(module, LoraLayer):
                self.model.set_submodule(name, unwrap(module))
            elif isinstance(module, SavedModule):
                self.model.set_submodule(name, module.current(names))
        return self.model


def _holders(layer):
    return (layer.lora_A, layer.lora_B) if isinstance(layer, LoraLayer) else (layer.modules_to_save,)
