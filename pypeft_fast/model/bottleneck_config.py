"""BottleneckConfig: a method that PEFT does not have; its file format is described in bottleneck.py."""

from dataclasses import dataclass

from ..autograd.bottleneck import ACTIVATIONS
from ..ops import _check
from . import validate
from .config import PeftConfig, PeftType

PLACEMENTS = ("houlsby", "pfeiffer", "parallel")


@dataclass
class BottleneckConfig(PeftConfig):
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

    KIND = PeftType.BOTTLENECK

    def __post_init__(self):
        super().__post_init__()
        validate.choice("placement", self.placement, PLACEMENTS)
        validate.positive("reduction_factor", self.reduction_factor)
        validate.choice("activation", self.activation, tuple(ACTIVATIONS))
        validate.positive("scaling", self.scaling)
        if not isinstance(self.dropout, (int, float)):
            raise TypeError(f"dropout={self.dropout!r} must be a number in [0, 1)")
        _check.dropout_p("dropout", self.dropout)
        validate.flag("layer_norm", self.layer_norm)
        self.modules_to_save = validate.module_names("modules_to_save", self.modules_to_save)
