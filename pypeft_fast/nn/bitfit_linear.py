"""BitFitLinear: nn.Linear whose bias alone trains."""

import torch
from torch import nn

from ..autograd.bitfit import bitfit_linear
from .adapter_linear import AdapterLinear


class BitFitLinear(AdapterLinear):
    """y = x W^T + b with W frozen and b trained (Ben Zaken et al., arXiv:2106.10199); no activation is saved for it.

    A drop-in for nn.Linear, always with a bias. The bias is float32 over a half-precision weight, else of its dtype.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(in_features, out_features, True, device, dtype)
        self._train_bias(self.bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, add_missing: bool = False) -> "BitFitLinear":
        """A BitFitLinear over the weight of `linear` itself, which is frozen there too, with a bias of its own.

        The bias starts as that of `linear`, or with add_missing at zero where there is none. Raises TypeError if
        `linear` is neither exactly an nn.Linear nor transformers' Conv1D, ValueError if it has no bias and add_missing
        is false, or if it has hooks or a forward of its own.
        """
        layer = cls._sharing(linear)
        if layer.bias is None and not add_missing:
            raise ValueError("from_linear: linear has no bias to train; add_missing=True gives it one that starts at 0")
        layer._train_bias(linear.weight.new_zeros(linear.out_features) if layer.bias is None else layer.bias)
        return layer

    def _train_bias(self, start):
        like = self._freeze()
        self.bias = nn.Parameter(torch.empty(self.out_features, **like).copy_(start.detach()))

    def _reset_adapter(self):
        """Does nothing: nn.Linear resets the bias."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return bitfit_linear(x, self.weight, self.bias)

    def _merged_values(self):
        return {}
