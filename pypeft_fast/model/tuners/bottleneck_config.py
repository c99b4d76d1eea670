"""BottleneckConfig: a method that PEFT does not have; its file format is described in bottleneck.py."""

from dataclasses import dataclass
from typing import ClassVar

from ...autograd.bottleneck import ACTIVATIONS
from . import checks
from .config import TunerConfig
from .peft_types import BOTTLENECK

PLACEMENTS = ("houlsby", "pfeiffer", "parallel")


@dataclass
class BottleneckConfig(TunerConfig):
    """A small network of two layers in every block of a transformer.

    Args:
        placement: "houlsby" (arXiv:1902.00751): on the output of attention and of the feedforward part, before the
            residual is added; "pfeiffer" (arXiv:2005.00247): on that of the feedforward part alone; "parallel"
            (arXiv:2110.04366): beside the feedforward part, from its input to its output.
        reduction_factor: the model's width over the bottleneck's.
        activation: "relu", "silu", "gelu" or "tanh".
        scaling: what the network adds is multiplied by it.
        dropout: in [0, 1), of the bottleneck's elements.
        layer_norm: a layer norm of its own before the network.
        modules_to_save: names of further modules that train and are saved whole.

    Raises TypeError or ValueError that names the field, its value and what is accepted.
    """

    placement: str = "houlsby"
    reduction_factor: float = 16
    activation: str = "relu"
    scaling: float = 1.0
    dropout: float = 0.0
    layer_norm: bool = False
    modules_to_save: list[str] | None = None

    target_modules: ClassVar[None] = None  # PEFT reads it of every config; here the model's structure says where

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = BOTTLENECK
        checks.choice("placement", self.placement, PLACEMENTS)
        checks.positive("reduction_factor", self.reduction_factor)
        checks.choice("activation", self.activation, tuple(ACTIVATIONS))
        checks.positive("scaling", self.scaling)
        checks.probability("dropout", self.dropout)
        checks.flag("layer_norm", self.layer_norm)
        self.modules_to_save = checks.module_names("modules_to_save", self.modules_to_save)
