"""A frozen linear layer with named adapters: what a method puts in the place of nn.Linear and Conv1D."""

import torch
import torch.nn.functional as F
from torch import nn

from ..autograd.lora import lora_linear
from ..nn.init import init_lora_
from ..nn.merge import lora_delta, merged_weight
from .layer import AdapterLayer, by_rows, with_hooks_of
from .targets import Target, is_conv1d


class AdaptedLayer(AdapterLayer):
    """y = x W^T + b + the sum over active LoRA adapters of scaling * (drop(x) A^T) B^T.

    The frozen weight and bias are the Parameters of the layer it replaces. lora_A and lora_B hold one nn.Linear an
    adapter, so that parameters are named as PEFT names them: `lora_A.<adapter>.weight` [r, K].
    """

    stands_for_linear = True
    holders = ("lora_A", "lora_B")

    def _start(self, base):
        """Takes over the frozen layer's Parameters; the subclass has run nn.Module.__init__."""
        super()._start()
        self.weight, self.bias = base.weight, base.bias
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.r: dict[str, int] = {}
        self.dropout: dict[str, float] = {}
        self.merged: list[str] = []  # adapters folded into the weight
        self._frozen_weight = None  # the original Parameter, while merged
        self.train(base.training)

    def frozen_weight(self):
        """The weight as [N, K]."""
        return self.weight

    def adapter_dtype(self, autocast):
        """Adapters over a half-precision weight are float32, if asked."""
        half = self.weight.dtype in (torch.float16, torch.bfloat16)
        return torch.float32 if half and autocast else self.weight.dtype

    def add_lora(self, adapter, target: Target, dropout, init, dtype):
        """A new adapter, initialised on the CPU as PEFT does, so that one seed gives the same values everywhere."""
        N, K = self.frozen_weight().shape
        A, B = nn.Linear(K, target.r, bias=False), nn.Linear(target.r, N, bias=False)
        weight = self.frozen_weight().detach()
        if init is not False:  # else as nn.Linear has just initialised them
            init_lora_(weight, A.weight, B.weight, init, target.scaling)
        self.lora_A[adapter], self.lora_B[adapter] = (m.to(weight.device, dtype) for m in (A, B))
        self.scaling[adapter], self.r[adapter], self.dropout[adapter] = target.scaling, target.r, dropout

    def remove(self, adapter):
        super().remove(adapter)
        for of_adapter in (self.scaling, self.r, self.dropout):
            of_adapter.pop(adapter, None)

    def forward(self, x):
        if self.rows is not None:
            if self.merged:
                raise ValueError(
                    f"adapter_names cannot be used while {self.merged} are merged; unmerge_adapter() first"
                )
            return by_rows(x, self.rows, lambda part, name: self._apply_adapters(part, [name]))
        return self._apply_adapters(x, [] if self.merged else self.active)

    def _apply_adapters(self, x, adapters):
        adapters = [name for name in adapters if name in self.lora_A]
        if not adapters:
            return F.linear(x, self.frozen_weight(), self.bias)
        first, *others = adapters
        y = lora_linear(
            x,
            self.frozen_weight(),
            self.lora_A[first].weight,
            self.lora_B[first].weight,
            self.bias,
            scaling=self.scaling[first],
            dropout_p=self.dropout[first],
            training=self.training,
        )
        for name in others:
            A, B = self.lora_A[name].weight, self.lora_B[name].weight
            low = F.linear(F.dropout(x.to(A.dtype), self.dropout[name], self.training), A)
            y = y + (F.linear(low, B) * self.scaling[name]).to(y.dtype)
        return y

    def delta(self, adapter):
        """scaling * B A in the weight's own layout, float32."""
        return lora_delta(self.lora_A[adapter].weight, self.lora_B[adapter].weight, self.scaling[adapter])

    def merge(self, adapters, safe=False):
        """Folds adapters into a weight of its own, in float32; the original is kept for unmerge.

        With safe, raises ValueError instead of merging values that are not finite.
        """
        adapters = [name for name in adapters if name in self.lora_A and name not in self.merged]
        if not adapters:
            return
        weight = merged_weight(self.weight, [self.delta(name) for name in adapters])
        if safe and not torch.isfinite(weight).all():
            raise ValueError(f"merging {adapters} would give NaN or infinite weights; the adapter is broken")
        if self._frozen_weight is None:
            self._frozen_weight = [self.weight]  # in a list, where nn.Module does not register it
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.merged += adapters

    def merge_state(self):
        """What `restore` takes back: the weight, and what is folded into it."""
        return self.weight, self._frozen_weight, list(self.merged)

    def restore(self, state):
        self.weight, self._frozen_weight, self.merged = state

    def unmerge(self):
        """Puts the original weight back, bit for bit."""
        if self.merged:
            self.weight, self._frozen_weight, self.merged = self._frozen_weight[0], None, []

    def _apply(self, fn, recurse=True):  # .to(), .half(): the original is cast, and merged again
        merged = list(self.merged)
        self.unmerge()
        super()._apply(fn, recurse)
        self.merge(merged)
        return self

    def extra_repr(self):
        N, K = self.frozen_weight().shape
        return f"in_features={K}, out_features={N}, bias={self.bias is not None}, r={self.r}, active={self.active}"


class AdaptedLinear(AdaptedLayer, nn.Linear):
    """In the place of an nn.Linear; it is one, weight [N, K]."""

    def __init__(self, base: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self._start(base)

    def replacement(self, adapters=None):
        """The plain nn.Linear over the layer's weight (the merged one, if it is merged), with its hooks."""
        plain = nn.Linear.__new__(nn.Linear)
        nn.Module.__init__(plain)
        plain.in_features, plain.out_features = self.in_features, self.out_features
        return self._plain(plain)

    def _plain(self, plain):
        plain.weight, plain.bias = self.weight, self.bias
        return with_hooks_of(self, plain.train(self.training))


class AdaptedConv1D(AdaptedLayer):
    """In the place of transformers' Conv1D, weight [K, N]."""

    def __init__(self, base):
        super().__init__()
        self.nx, self.nf = base.nx, base.nf
        self._start(base)

    def frozen_weight(self):
        return self.weight.t()

    def delta(self, adapter):
        return super().delta(adapter).t()

    def replacement(self, adapters=None):
        """The plain Conv1D, as for nn.Linear."""
        from transformers.pytorch_utils import Conv1D

        plain = Conv1D.__new__(Conv1D)
        nn.Module.__init__(plain)
        plain.nx, plain.nf = self.nx, self.nf
        return AdaptedLinear._plain(self, plain)


def frozen_weight(module):
    """The weight of a linear layer, wrapped or not, as [N, K]."""
    if isinstance(module, AdaptedLayer):
        return module.frozen_weight()
    return module.weight.t() if is_conv1d(module) else module.weight


def wrap(module) -> AdaptedLayer:
    """The module itself if it is an AdaptedLayer, else one over its Parameters, with its hooks."""
    if isinstance(module, AdaptedLayer):
        return module
    return with_hooks_of(module, AdaptedConv1D(module) if is_conv1d(module) else AdaptedLinear(module))
