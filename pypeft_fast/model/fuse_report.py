"""FuseReport: which layers run on the ops, why the others do not, and how often the fused layers were called."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class FuseReport:
    """The result of fuse() by layer names, and counts of the calls since.

    fused: names of the layers that now run on the ops. left: {name of any other PEFT adapter layer: why it is not
    fused}. gated: names of the feedforward modules whose activation and down_proj now run as one function, which saves
    fewer tensors for the backward pass. gated_left: {name of any other such module: why it is not fused}.
    """

    fused: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    gated: list[str] = field(default_factory=list)
    gated_left: dict[str, str] = field(default_factory=dict)
    _counters: list[Counter] = field(default_factory=list, repr=False)  # not the layers, so that the model can be freed
    _gated_counters: list[Counter] = field(default_factory=list, repr=False)

    def calls(self) -> Counter:
        """{how a call ran: number of calls of the fused layers}.

        "fused": on the ops. "fused around the base: " + reason: the frozen layer's own forward was called, and the ops
        added the update. A reason alone: the call ran in PEFT's forward for this reason.

        A batch whose rows belong to several adapters (adapter_names) counts as fused if multi_lora_linear ran for the
        layer. A call with nothing to fuse is not counted: adapters are disabled or merged, or no row has an adapter of
        the layer. Calls inside a graph of torch.compile are not counted.
        """
        return sum(self._counters, Counter())

    def gated_calls(self) -> Counter:
        """{how a call ran: number of calls of the gated modules}: "fused", or the reason why a call was not fused."""
        return sum(self._gated_counters, Counter())

    def never_called(self) -> list[str]:
        """The names of the fused layers that have not been called since fuse(): all of them before a forward pass.

        If a layer is listed after a forward pass of the whole model, the model reads the layer's weight instead of
        calling the layer. Then the layer's adapter has no effect, as in PEFT.
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
    """[(reason, names with this reason)] of {name: reason}, the most frequent reason first."""
    counted = Counter(left.values()).most_common()
    return [(reason, [name for name, its in left.items() if its == reason]) for reason, _ in counted]
