"""BitFit and bottleneck adapters, which Hugging Face PEFT lacks, as PEFT methods. Importing registers them."""

from . import register as _registers  # noqa: F401
from .bitfit import BitFitModel
from .bottleneck import BottleneckModel
from .configs import BitFitConfig, BottleneckConfig

__all__ = ["BitFitConfig", "BitFitModel", "BottleneckConfig", "BottleneckModel"]
