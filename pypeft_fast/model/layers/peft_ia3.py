"""PEFT's ia3.Linear on the fused ops."""

from peft.tuners.ia3.layer import Linear as IA3Linear

from ..joints import rows as rows_of_batch
from ..joints.mixed_rows import mixed_rows_scale
from .fused_layer import FusedLayer
from .ia3 import IA3


class FusedIA3(FusedLayer):
    """The first base class of a fused layer with IA3 adapters."""

    holder = "ia3_l"

    @staticmethod
    def method(layer, name):
        return IA3

    def of_rows(self, x, names, *args, **kwargs):
        """Scales each row by its adapter's factors: one product and one scaling, in plain PyTorch. PEFT itself has no
        adapter_names for IA3."""
        if self.merged:
            raise ValueError("adapter_names cannot be used while adapters are merged; call unmerge_adapter first")
        factors = {name: vector.flatten() for name, vector in self.ia3_l.items()}
        groups = rows_of_batch.positions(names)
        if self.is_feedforward:
            return self.base_layer(mixed_rows_scale(x, groups, factors), *args, **kwargs)
        return mixed_rows_scale(self.base_layer(x, *args, **kwargs), groups, factors)


class FusedLinear(FusedIA3, IA3Linear):
    peft_class = IA3Linear
