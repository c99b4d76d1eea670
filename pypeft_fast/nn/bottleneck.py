"""Bottleneck: a small network between a layer and what follows it."""

import torch
from torch import nn

from ..autograd.bottleneck import bottleneck, check_activation
from ..ops import _check


class _Down(nn.Linear):
    def reset_parameters(self):
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)


class _Up(nn.Linear):
    def reset_parameters(self):
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class Bottleneck(nn.Module):
    """y = residual + scaling * (drop(f(norm(x) D^T + d)) U^T + u); residual is x itself if none is given.

    down and up are nn.Linear; up starts at zero, so that a new adapter changes nothing, and so does its own
    reset_parameters. With layer_norm x is normalised first. dropout in [0, 1) applies to the bottleneck in training
    mode. device, dtype: of all parameters; the dtype is x's, or float32 over a half-precision x. ValueError or
    TypeError if activation, scaling or dropout does not fit.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        width: int,
        *,
        activation: str = "relu",
        scaling: float = 1.0,
        dropout: float = 0.0,
        layer_norm: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_activation("Bottleneck", activation)
        _check.number("Bottleneck", "scaling", scaling)
        _check.dropout_p("Bottleneck", _check.number("Bottleneck", "dropout", dropout))
        of = dict(device=device, dtype=dtype)
        self.down, self.up = _Down(in_features, width, **of), _Up(width, out_features, **of)
        self.norm = nn.LayerNorm(in_features, **of) if layer_norm else None
        self.activation, self.scaling, self.dropout = activation, scaling, dropout

    def reset_parameters(self) -> None:
        """Initial values for all of it, as each part's own reset_parameters gives them."""
        for part in self.children():
            part.reset_parameters()

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        norm = self.norm
        return bottleneck(
            x,
            self.down.weight,
            self.down.bias,
            self.up.weight,
            self.up.bias,
            residual=residual,
            norm_weight=None if norm is None else norm.weight,
            norm_bias=None if norm is None else norm.bias,
            activation=self.activation,
            scaling=self.scaling,
            dropout_p=self.dropout,
            training=self.training,
        )

    def extra_repr(self) -> str:
        return f"activation={self.activation}, scaling={self.scaling:g}, dropout={self.dropout}"
