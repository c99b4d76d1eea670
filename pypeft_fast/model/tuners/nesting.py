"""The order in which tuner layers of several methods lie around one module."""

from itertools import pairwise

from peft.tuners.tuners_utils import BaseTunerLayer

from .bitfit_layer import BitFitLayer
from .bottleneck_layer import BottleneckLinear

OUTER = (BottleneckLinear, BitFitLayer)  # from the outside in; then PEFT's own, in the order in which they came


def arrange(model, first=None) -> None:
    """Bottlenecks outermost, then BitFit, then PEFT's layers: what is computed does not depend on who came first.

    So y = N(V x + b'): V is what PEFT's methods make of the weight, DoRA's lengths included, b' the BitFit adapter's
    bias and N the bottlenecks. first: an adapter whose layers go outermost for the moment, because PEFT finds the place
    of a file's tensors only there.
    """
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, BaseTunerLayer) and not (isinstance(parent, BaseTunerLayer) and name == "base_layer"):
                _arrange(parent, name, child, first)


def _arrange(parent, name, layer, first):
    layers = []
    while isinstance(layer, BaseTunerLayer) and hasattr(layer, "base_layer"):
        layers.append(layer)
        layer = layer.base_layer
    wanted = sorted(layers, key=lambda found: _rank(found, first))
    if wanted != layers:
        setattr(parent, name, wanted[0])
        for outer, inner in pairwise([*wanted, layer]):
            outer.base_layer = inner


def _rank(layer, first) -> int:
    if first in layer._get_available_adapters():
        return -1
    return next((rank for rank, kind in enumerate(OUTER) if isinstance(layer, kind)), len(OUTER))
