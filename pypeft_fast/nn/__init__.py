"""Drop-in modules."""

from .bitfit_linear import BitFitLinear
from .bottleneck import Bottleneck
from .ia3_linear import IA3Linear
from .lora_linear import LoRALinear
from .multi_lora_linear import MultiLoRALinear

__all__ = ["BitFitLinear", "Bottleneck", "IA3Linear", "LoRALinear", "MultiLoRALinear"]
