"""Bottleneck: a small network between a layer and what follows it."""

from torch import nn

from ..autograd.bottleneck import bottleneck


class Bottleneck(nn.Module):
    """y = residual + scaling * (drop(f(norm(x) D^T + d)) U^T + u); residual is x itself if none is given.

    down and up are nn.Linear; up starts at zero, so that a new adapter changes nothing. With layer_norm x is normalised
    first. dropout in [0, 1) applies to the bottleneck in training mode.
    """

    def __init__(
        self, in_features, out_features, width, *, activation="relu", scaling=1.0, dropout=0.0, layer_norm=False
    ):
        super().__init__()
        self.down, self.up = nn.Linear(in_features, width), nn.Linear(width, out_features)
        self.norm = nn.LayerNorm(in_features) if layer_norm else None
        self.activation, self.scaling, self.dropout = activation, scaling, dropout
        nn.init.normal_(self.down.weight, std=0.02)
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def forward(self, x, residual=None):
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

    def extra_repr(self):
        return f"activation={self.activation}, scaling={self.scaling:g}, dropout={self.dropout}"
