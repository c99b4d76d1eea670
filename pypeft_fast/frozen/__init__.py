"""The frozen operand: how a weight is stored, as a value that modules hand to the functions of autograd/."""

from .modules import frozen_of
from .operand import Frozen
from .quantize import quantize

__all__ = ["Frozen", "frozen_of", "quantize"]
