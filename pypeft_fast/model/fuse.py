"""fuse() and unfuse(): an existing Hugging Face PEFT model runs on this package's ops, and on PEFT's code again."""

import peft
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from .fuse_report import FuseReport, by_reason
from .joints import gated_mlp
from .layers import peft_around, peft_ia3, peft_lora
from .layers.fused_layer import FusedLayer

# {class of a PEFT layer: its fused subclass}
KINDS = {kind.peft_class: kind for kind in (peft_lora.FusedLinear, peft_ia3.FusedLinear)}


def fuse(model: nn.Module, *, strict: bool = False) -> FuseReport:
    """Runs the LoRA, DoRA, rsLoRA and IA3 layers of a Hugging Face PEFT model on this package's fused ops, in place.

    Parameters, names, state dict, configs, hooks and isinstance relations do not change. PEFT's saving, switching,
    merging and adding of adapters work as before. A layer that no fused op supports (another kind of layer, a variant
    of LoRA) is left as it is. The ops decode bitsandbytes and FP8 weights. If the ops cannot read the frozen layer's
    weight, the frozen layer's own forward is called and only the LoRA update is fused. A fused layer runs PEFT's own
    forward for calls that the ops do not support; `report.calls()` counts the reasons. Call fuse again after PEFT adds
    layers to the model.

    If a LoRA layer is the down_proj of a gated feedforward module with SiLU, as in Llama, that module's class is set to
    a subclass that runs the activation and down_proj as one function.

    Differences from PEFT: Dropout draws one seed per call from torch's generator, not one number per element, so masks
    and the generator's later state differ. A layer's input must not be changed in place before the backward pass, also
    where PEFT keeps a copy after dropout or a cast. Second derivatives raise an error.

    Args:
        model: a peft.PeftModel, or any model with PEFT adapters in it (`model.add_adapter` of transformers).
        strict: raise ValueError, before anything is changed, unless every adapter layer can be fused.

    Returns:
        A FuseReport: the names of the fused layers, and the reason for each layer that is not fused.

    Raises:
        TypeError: model is not a torch.nn.Module.
        ValueError: model has no PEFT adapter layer; or strict=True and a layer cannot be fused.
    """
    report = FuseReport()
    plan = []
    for name, layer in _adapter_layers(model, "fuse").items():
        kind = _kind(layer)
        reason = f"no fused op for {type(layer).__module__}.{type(layer).__qualname__}"
        if kind is not None:
            reason = kind.why_not_layer(layer)
        if reason is not None:
            report.left[name] = reason
        else:
            report.fused.append(name)
            plan.append((kind, layer))
    if strict and report.left:
        listed = "; ".join(
            f"{names[0]}: {reason}" + (f" (and {len(names) - 1} more)" if names[1:] else "")
            for reason, names in by_reason(report.left)
        )
        raise ValueError(f"fuse(strict=True): {len(report.left)} of the adapter layers cannot be fused: {listed}")
    for kind, layer in plan:
        if not isinstance(layer, kind):
            kind.attach(layer)
        report._counters.append(layer._fused_calls)
    gated, report.gated_left = gated_mlp.refresh(model)
    report.gated = list(gated)
    report._gated_counters = [module._gated_calls for module in gated.values()]
    return report


def unfuse(model: nn.Module) -> int:
    """Gives every fused layer of the model its PEFT class again; returns the number of layers.

    Raises:
        TypeError: model is not a torch.nn.Module.
        ValueError, before any change: model has no PEFT adapter layer; or another tool has derived a new class from the
            class of a fused layer or gated module, as FSDP2's fully_shard does for the module it is called on.
            fully_shard on a whole block does not change the classes of the block's layers.
    """
    fused = {n: m for n, m in _adapter_layers(model, "unfuse").items() if isinstance(m, FusedLayer)}
    derived = {n: m for n, m in fused.items() if type(m) is not _kind(m)} | gated_mlp.derived(model)
    if derived:
        listed = "; ".join(f"{name} is a {type(module).__name__}" for name, module in derived.items())
        raise ValueError(
            f"unfuse: {len(derived)} fused modules now have a class derived from ours, as FSDP2's fully_shard makes: "
            f"{listed}. Call unfuse before fully_shard, or load the saved adapter into another model"
        )
    for layer in fused.values():
        layer.detach()
    gated_mlp.release(model)
    return len(fused)


def register(config: peft.LoraConfig) -> peft.LoraConfig:
    """Makes `peft.get_peft_model` and `add_adapter` build fused layers from this peft.LoraConfig; returns the config.

    For scripts that take a config and build the model themselves. The registration belongs to this config object and is
    not saved with the adapter. PEFT has no such hook for IA3: fuse the finished model, or give a Trainer FuseCallback.

    Raises TypeError for anything but a peft.LoraConfig.
    """
    if not isinstance(config, peft.LoraConfig):
        kind = f"{type(config).__module__}.{type(config).__qualname__}"
        raise TypeError(f"register: config is a {kind}, expected a peft.LoraConfig; use fuse(model) for other methods")

    def build(target, adapter_name, **kwargs):
        layer = peft_lora.build(target, adapter_name, **{"config": config, **kwargs})
        if isinstance(layer, FusedLayer):
            gated_mlp.join_when_placed(layer)
        return layer

    config._register_custom_module({nn.Linear: build, Conv1D: build})  # PEFT only calls the values, so functions work
    return config


def _adapter_layers(model, what) -> dict[str, nn.Module]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{what}: model is a {type(model).__name__}, expected a torch.nn.Module with PEFT adapters")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    if not layers:
        raise ValueError(f"{what}: {type(model).__name__} has no adapter layer of Hugging Face PEFT; add an adapter")
    return layers


def _kind(layer) -> type[FusedLayer] | None:
    """The fused class for a layer of exactly this PEFT class, whether the layer is fused already or not; or None."""
    kind = layer.peft_class if isinstance(layer, FusedLayer) else type(layer)
    if kind.__module__ in ("peft.tuners.lora.bnb", "peft.tuners.ia3.bnb"):
        from .layers import peft_bnb

        return peft_bnb.KINDS.get(kind)
    return KINDS.get(kind) or peft_around.fused(kind)
