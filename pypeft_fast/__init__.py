"""pypeft_fast: LoRA fused with the frozen layer, forward and backward, and whole models through Hugging Face PEFT."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

# Importing kernels/ sets the name `kernels` here. Import it now and delete the name: the function kernels() takes it.
from . import kernels as _folder  # noqa: F401
from ._when_imported import watch as _watch

if _TYPE_CHECKING:
    from . import nn
    from ._own import (
        Frozen,
        dora_linear,
        frozen_of,
        ia3_linear,
        lora_gated_linear,
        lora_linear,
        multi_lora_linear,
        quantize,
        recording,
        using,
    )

del kernels  # noqa: F821

__version__ = "0.1.0"
# Names of pypeft_fast.model, which imports peft and transformers: loaded at first use.
_LATE = {
    "AutoPeftModel": "auto",
    "AutoPeftModelForCausalLM": "auto",
    "AutoPeftModelForFeatureExtraction": "auto",
    "AutoPeftModelForQuestionAnswering": "auto",
    "AutoPeftModelForSeq2SeqLM": "auto",
    "AutoPeftModelForSequenceClassification": "auto",
    "AutoPeftModelForTokenClassification": "auto",
    "BitFitConfig": "tuners",
    "BitFitModel": "tuners",
    "BottleneckConfig": "tuners",
    "BottleneckModel": "tuners",
    "FuseCallback": "fuse_callback",
    "FuseReport": "fuse_report",
    "PeftMixedModel": "mixed_model",
    "PeftModel": "peft_model",
    "PeftModelForCausalLM": "peft_model",
    "PeftModelForFeatureExtraction": "peft_model",
    "PeftModelForQuestionAnswering": "peft_model",
    "PeftModelForSeq2SeqLM": "peft_model",
    "PeftModelForSequenceClassification": "peft_model",
    "PeftModelForTokenClassification": "peft_model",
    "fuse": "fuse",
    "get_peft_model": "peft_model",
    "load_adapters": "load_adapters",
    "lossy_merge": "layers.lossy_merge",
    "quantize_model": "quantize_model",
    "register": "fuse",
    "unfuse": "fuse",
}
__all__ = [
    "Frozen",
    "dora_linear",
    "frozen_of",
    "ia3_linear",
    "kernels",
    "lora_gated_linear",
    "lora_linear",
    "multi_lora_linear",
    "nn",
    "quantize",
    "recording",
    "using",
    *_LATE,
]
# Loaded at first use, so that the command can report a wrong argument without importing PyTorch.
_OWN = frozenset(__all__) - frozenset(_LATE)


def __getattr__(name: str) -> _Any:
    """Loads a name of this package at first use; every other public name is PEFT's own object."""
    if name == "nn":
        return _import_module(".nn", __name__)
    if name in _OWN:
        globals()[name] = getattr(_import_module("._own", __name__), name)
        return globals()[name]
    if name in _LATE:
        return getattr(_import_module(f".model.{_LATE[name]}", __name__), name)
    if not name.startswith("_"):
        peft = _import_module("peft")
        if hasattr(peft, name):
            return getattr(peft, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}, and neither has peft")


def __dir__() -> list[str]:
    """The public names of this package and of PEFT, which is imported for its names."""
    special = {name for name in globals() if name.startswith("__")}
    return sorted({*special, *__all__, *_import_module("peft").__all__})


_watch()
