"""PEFT's LoRA layers over other libraries' quantised layers, whose forward adds the update to the base layer's output.

A class of these layers exists only if its library is installed, so the fused class is generated on first use.
"""

import functools

from .peft_lora import FusedLoRA

_ADDS_TO_ITS_BASE = {
    ("peft.tuners.lora.aqlm", "AqlmLoraLinear"),
    ("peft.tuners.lora.awq", "AwqLoraLinear"),
    ("peft.tuners.lora.eetq", "EetqLoraLinear"),
    ("peft.tuners.lora.gptq", "GPTQLoraLinear"),
    ("peft.tuners.lora.hqq", "HqqLoraLinear"),
    ("peft.tuners.lora.inc", "IncLoraLinear"),
    ("peft.tuners.lora.torchao", "TorchaoLoraLinear"),
}


def fused(peft_class) -> type[FusedLoRA] | None:
    """The fused class for layers of exactly this PEFT class, or None."""
    return _fused(peft_class) if (peft_class.__module__, peft_class.__name__) in _ADDS_TO_ITS_BASE else None


class FusedAround(FusedLoRA):
    """The first base class of a generated class; the second base is PEFT's class."""

    def __reduce_ex__(self, protocol):
        """For copy and pickle, which cannot import the generated class by its name."""
        if type(self) is not _fused(self.peft_class):
            return super().__reduce_ex__(protocol)
        _, _, *state = super().__reduce_ex__(2)
        return _empty, (self.peft_class,), *state


def _empty(peft_class):
    kind = _fused(peft_class)
    return kind.__new__(kind)


@functools.cache
def _fused(peft_class):
    names = {"__module__": peft_class.__module__, "__doc__": peft_class.__doc__, "peft_class": peft_class}
    return type(f"Fused{peft_class.__name__}", (FusedAround, peft_class), names)
