"""Drop-in modules."""

from .bitfit_linear import BitFitLinear
from .bottleneck import Bottleneck
from .lora_linear import LoRALinear

__all__ = ["BitFitLinear", "Bottleneck", "LoRALinear"]
