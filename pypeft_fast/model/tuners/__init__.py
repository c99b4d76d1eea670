"""What Hugging Face PEFT lacks, as methods of PEFT: BitFit and bottleneck adapters. Importing registers them."""

from . import register as _registers  # noqa: F401
from .bitfit import BitFitModel
from .bottleneck import BottleneckModel
from .configs import BitFitConfig, BottleneckConfig

__all__ = ["BitFitConfig", "BitFitModel", "BottleneckConfig", "BottleneckModel"]
