"""PEFT's LoRA layers over weights of other libraries, whose forward adds the update to what the layer below returns.

Their classes exist only where those libraries do, so each gets its fused class when a layer of it is met.
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
    """The class that fuses layers of exactly this one, or None."""
    return _fused(peft_class) if (peft_class.__module__, peft_class.__name__) in _ADDS_TO_ITS_BASE else None


class FusedAround(FusedLoRA):
    """What the generated class puts before PEFT's."""

    def __reduce_ex__(self, protocol):
        """For copy and pickle, which cannot find the generated class by name."""
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
