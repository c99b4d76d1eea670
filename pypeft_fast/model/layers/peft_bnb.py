"""PEFT's layers over bitsandbytes' modules on the fused ops. Imported only for a model that has such a layer."""

from peft.tuners.ia3 import bnb as ia3_bnb
from peft.tuners.lora import bnb as lora_bnb

from .peft_ia3 import FusedIA3
from .peft_lora import FusedLoRA


class FusedLinear4bit(FusedLoRA, lora_bnb.Linear4bit):
    peft_class = lora_bnb.Linear4bit


class FusedLinear8bitLt(FusedLoRA, lora_bnb.Linear8bitLt):
    peft_class = lora_bnb.Linear8bitLt


class FusedIA3Linear4bit(FusedIA3, ia3_bnb.Linear4bit):
    peft_class = ia3_bnb.Linear4bit


class FusedIA3Linear8bitLt(FusedIA3, ia3_bnb.Linear8bitLt):
    peft_class = ia3_bnb.Linear8bitLt


KINDS = {
    kind.peft_class: kind for kind in (FusedLinear4bit, FusedLinear8bitLt, FusedIA3Linear4bit, FusedIA3Linear8bitLt)
}
