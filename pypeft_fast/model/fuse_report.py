"""FuseReport: which layers run on the ops, which do not and why, and counts of their calls."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class FuseReport:
    """What fuse() did, by the names of the layers, and what has run since.

    fused: names of the layers that now run on the ops. left: {name: why it stays PEFT's}, among all of PEFT's adapter
    layers in the model. gated: names of the feedforward modules whose activation now runs together with their
    down_proj, which keeps fewer tensors for the backward pass; gated_left: {name: why it does not}.
    """

    fused: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    gated: list[str] = field(default_factory=list)
    gated_left: dict[str, str] = field(default_factory=dict)
    _counters: list[Counter] = field(default_factory=list, repr=False)  # not the layers, so that the model can be freed
    _gated_counters: list[Counter] = field(default_factory=list, repr=False)

    def calls(self) -> Counter:
        """How often the fused layers were called: {"fused": on the ops, "fused around the base: " and a reason: the
        update on the ops beside the frozen layer's own call, a reason: in PEFT's forward because of it}.

        A batch whose rows belong to several adapters (adapter_names) counts as fused where multi_lora_linear ran for
        the layer. Calls with nothing to fuse (adapters disabled or merged, no row of an adapter that the layer has) are
        not counted, nor are those inside graphs that torch.compile has traced.
        """
        return sum(self._counters, Counter())

    def gated_calls(self) -> Counter:
        """How often the gated modules were called: {"fused": activation and down_proj in one, a reason: apart}."""
        return sum(self._gated_counters, Counter())

    def never_called(self) -> list[str]:
        """The fused layers that no call has reached since they were fused.

        If a layer is listed after a forward pass of the whole model, the model reads its weight instead of calling it:
        its adapter has no effect, as in PEFT.
        """
        return [name for name, calls in zip(self.fused, self._counters, strict=True) if not calls]

    def __str__(self):
        lines = [f"{len(self.fused)} layers fused, {len(self.left)} left to PEFT"]
        if self.gated:
            lines.append(f"  {len(self.gated)} gated activations fused with their down_proj")
        for reason, names in by_reason(self.gated_left):
            lines.append(f"  {len(names)} gated activations left: {reason}, such as {names[0]}")
        for reason, names in by_reason(self.left):
            lines.append(f"  {len(names)} left: {reason}, such as {names[0]}")
        if self.calls() and self.never_called():
            names = self.never_called()
            lines.append(f"  {len(names)} never called: the model reads their weight instead, such as {names[0]}")
        return "\n".join(lines)


def by_reason(left) -> list[tuple[str, list[str]]]:
    """(reason, the names that have it) of {name: reason}, the most frequent first: a model has hundreds of layers."""
    counted = Counter(left.values()).most_common()
    return [(reason, [name for name, its in left.items() if its == reason]) for reason, _ in counted]
