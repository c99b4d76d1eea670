"""IA3Linear: nn.Linear with the learned factors of IA3 on its outputs or inputs."""

import torch
from torch import nn

from ..autograd.ia3 import ia3_linear
from .adapter_linear import AdapterLinear
from .frozen_linear import linear
from .merge import scaled_in_float32


class IA3Linear(AdapterLinear):
    """y = (x W^T + b) * l, or with feedforward y = (x * l) W^T + b, with W and b frozen (Liu et al., arXiv:2205.05638).

    A drop-in for nn.Linear: same constructor, same weight and bias, and ia3_l to train, [N] or with feedforward [K].

    Args:
        in_features, out_features, bias: as in nn.Linear (K, N).
        feedforward: ia3_l multiplies the inputs, as the method does before the second layer of a feedforward block.
        init_ia3_weights: ia3_l starts at one, so that a new layer computes what the frozen one does; if false, at
            values of a normal distribution.
        device, dtype: of weight and bias. ia3_l is float32 over a half-precision weight, else of that dtype.
    """

    _reads_frozen = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        feedforward: bool = False,
        init_ia3_weights: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(in_features, out_features, bias, device, dtype)
        self._add_adapter(feedforward, init_ia3_weights)

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, feedforward: bool = False, init_ia3_weights: bool = True) -> "IA3Linear":
        """An IA3Linear over the Parameters of `linear` themselves: nothing is copied, and they are frozen there too.

        Also over transformers' Conv1D, and over bitsandbytes' Linear4bit and Linear8bitLt and transformers' FP8Linear.
        Raises TypeError for any other layer: a subclass of nn.Linear may compute something else; ValueError if it has
        hooks or a forward of its own, which the new layer would not run.
        """
        layer = cls._sharing(linear)
        layer._add_adapter(feedforward, init_ia3_weights)
        return layer

    def _add_adapter(self, feedforward, init_ia3_weights):
        self.feedforward, self.init_ia3_weights = bool(feedforward), bool(init_ia3_weights)
        self.ia3_l = nn.Parameter(torch.empty(self.in_features if feedforward else self.out_features, **self._freeze()))
        self.reset_ia3_parameters(init_ia3_weights)

    def reset_ia3_parameters(self, init_ia3_weights: bool = True) -> None:
        """ia3_l to one, or if init_ia3_weights is false to values of the standard normal distribution."""
        if init_ia3_weights:
            nn.init.ones_(self.ia3_l)
        else:
            nn.init.normal_(self.ia3_l)

    def _reset_adapter(self):
        self.reset_ia3_parameters(self.init_ia3_weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.merged:
            return self._over(x, linear)
        feedforward = self.feedforward
        return self._over(
            x, lambda x, weight, bias, ia3_l: ia3_linear(x, weight, ia3_l, bias, feedforward=feedforward), self.ia3_l
        )

    def _merged_values(self):
        weight = self._dense_weight()
        bias = self.bias if self._quantized is None else self._quantized.bias
        if self.feedforward:
            return {"weight": scaled_in_float32(weight, self.ia3_l)}
        values = {"weight": scaled_in_float32(weight, self.ia3_l[:, None])}
        return values if bias is None else values | {"bias": scaled_in_float32(bias, self.ia3_l)}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, feedforward={self.feedforward}"
