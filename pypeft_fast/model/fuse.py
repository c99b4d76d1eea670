"""fuse(): the layers of an existing Hugging Face PEFT model on this package's ops, in place, and back."""

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

    Parameters, names, state dict, configs, hooks and isinstance relations stay; so do PEFT's saving, switching,
    merging and adding of adapters. A layer that no fused op can replace (another kind of layer, a variant of LoRA) is
    left as it is. bitsandbytes and FP8 weights are decoded inside the ops. If the frozen layer's weight cannot be
    read, only the LoRA update is fused, and the frozen layer's own forward is called. A fused layer runs PEFT's own
    forward for calls that the ops do not support; `report.calls()` counts the reasons. Call fuse again after PEFT adds
    layers to the model.

    If a LoRA layer is the down_proj of a gated feedforward module with SiLU, as in Llama, that module's class is set to
    a subclass that runs the activation and down_proj as one function.

    Differences from PEFT: dropout draws one seed per call from torch's generator, not one number per element, so masks
    and the generator's later state differ; a layer's input must not be changed in place before its backward pass, even
    where PEFT keeps a dropped or cast copy; second derivatives raise an error.

    Args:
        model: a peft.PeftModel, or any model with PEFT adapters in it (`model.add_adapter` of transformers).
        strict: raise ValueError, before anything is changed, unless every adapter layer can be fused.

    Returns:
        A FuseReport: the names of the fused layers, and the reason for each that is left.

    Raises:
        TypeError: model is not a torch.nn.Module. ValueError: it has no PEFT adapter layer, or strict.
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
        TypeError: model is not a torch.nn.Module. ValueError: it has no PEFT adapter layer; or a
            fused layer or gated module now has a class derived from ours, as after fully_shard of FSDP2 on that very
            module: then nothing is changed. fully_shard on whole blocks does not change the classes of their layers.
    """
    fused = {n: m for n, m in _adapter_layers(model, "unfuse").items() if isinstance(m, FusedLayer)}
    derived = {n: m for n, m in fused.items() if type(m) is not _kind(m)} | gated_mlp.derived(model)
    if derived:
        listed = "; ".join(f"{name} is a {type(module).__name__}" for name, module in derived.items())
        raise ValueError(
            f"unfuse: the class of {len(derived)} fused modules has been derived since, as by FSDP2's fully_shard, and "
            f"cannot be taken back: {listed}. Unfuse before that, or load the saved adapter into a model of its own"
        )
    for layer in fused.values():
        layer.detach()
    gated_mlp.release(model)
    return len(fused)


def register(config: peft.LoraConfig) -> peft.LoraConfig:
    """Makes `peft.get_peft_model` and `add_adapter` build fused layers from this peft.LoraConfig; returns the config.

    For scripts that take a config and build the model themselves. The registration lives in this object alone: it is
    not saved with the adapter. IA3 has no such hook in PEFT: fuse the finished model, or give a Trainer FuseCallback.

    Raises TypeError for anything but a peft.LoraConfig.
    """
    if not isinstance(config, peft.LoraConfig):
        kind = f"{type(config).__module__}.{type(config).__qualname__}"
        raise TypeError(f"register: config is a {kind}, expected a peft.LoraConfig; other models take fuse(model)")

    def build(target, adapter_name, **kwargs):
        layer = peft_lora.build(target, adapter_name, **{"config": config, **kwargs})
        if isinstance(layer, FusedLayer):
            gated_mlp.join_when_placed(layer)
        return layer

    config._register_custom_module({nn.Linear: build, Conv1D: build})  # PEFT only calls the values
    return config


def _adapter_layers(model, what) -> dict[str, nn.Module]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{what}: model is a {type(model).__name__}, expected a torch.nn.Module with PEFT adapters")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    if not layers:
        raise ValueError(f"{what}: {type(model).__name__} has no adapter layer of Hugging Face PEFT in it")
    return layers


def _kind(layer) -> type[FusedLayer] | None:
    """The fused class for layers of exactly this class; this class itself if it is fused; or None."""
    kind = layer.peft_class if isinstance(layer, FusedLayer) else type(layer)
    if kind.__module__ in ("peft.tuners.lora.bnb", "peft.tuners.ia3.bnb"):
        from .layers import peft_bnb

        return peft_bnb.KINDS.get(kind)
    return KINDS.get(kind) or peft_around.fused(kind)
