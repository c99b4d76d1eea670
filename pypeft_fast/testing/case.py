"""Case: the sizes, dtypes, memory layout and options of one call of an op."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Case:
    """x [M, K], weight [N, K], lora_A [r, K], lora_B [N, r]; an op uses only the tensors among its arguments."""

    M: int = 5
    K: int = 24
    N: int = 17
    r: int = 3
    p: float = 0.0
    dtype: torch.dtype = torch.float32
    adapter: torch.dtype | None = None  # the adapter's dtype; None: the same as dtype
    layout: str = "contiguous"  # or "strided": every operand is a view with gaps, and the weight is transposed
    bias: bool = True
    format: str = "dense"  # the format of the weight, for an op that takes a pf.Frozen
    options: dict = field(default_factory=dict, hash=False)  # options of one op, such as feedforward: see ops/<op>.py

    def __str__(self):
        dtypes = f"{self.dtype}".removeprefix("torch.") + (
            f"+{self.adapter}".replace("torch.", "") if self.adapter else ""
        )
        options = "".join(f"-{name}={value}" for name, value in self.options.items())
        bias = "" if self.bias else "-nobias"
        stored = "" if self.format == "dense" else f"-{self.format}"
        return f"{self.M}x{self.K}x{self.N}-r{self.r}-p{self.p}-{dtypes}-{self.layout}{bias}{stored}{options}"
