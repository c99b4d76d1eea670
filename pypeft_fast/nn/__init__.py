"""Drop-in modules."""

from .ia3_linear import IA3Linear
from .lora_linear import LoRALinear

__all__ = ["IA3Linear", "LoRALinear"]
