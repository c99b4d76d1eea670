"""A frozen linear layer with named LoRA adapters: what get_peft_model puts in the place of nn.Linear and Conv1D."""

import torch
import torch.nn.functional as F
from torch import nn

from ..autograd.lora import lora_linear
from ..nn.init import init_lora_
from ..nn.merge import lora_delta, merged_weight
from .targets import Target, is_conv1d

BASE = "__base__"  # in adapter_names: this row gets no adapter
# What nn.Module keeps of a module's hooks.
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


def by_rows(x, names, function):
    """function(rows of x, name) for each distinct name, put together in the order of x's rows.

    A model may repeat the rows of a batch, each in place (beam search): then there are k rows to a name.
    """
    repeats, rest = divmod(x.shape[0], len(names))
    if rest or not repeats:
        raise ValueError(f"adapter_names has {len(names)} names for a batch of {x.shape[0]} rows; give one a row")
    names = [name for name in names for _ in range(repeats)]
    groups = {name: [i for i, n in enumerate(names) if n == name] for name in dict.fromkeys(names)}
    parts = [function(x[torch.tensor(rows, device=x.device)], name) for name, rows in groups.items()]
    order = torch.tensor([i for rows in groups.values() for i in rows], device=x.device)
    return torch.cat(parts)[order.argsort()]


class LoraLayer(nn.Module):
    """y = x W^T + b + the sum over active adapters of scaling * (drop(x) A^T) B^T.

    The frozen weight and bias are the Parameters of the layer it replaces. lora_A and lora_B hold one nn.Linear an
    adapter, so that parameters are named as PEFT names them: `lora_A.<adapter>.weight` [r, K].
    """

    stands_for_linear = True

    def _start(self, base):
        """Takes over the frozen layer's Parameters; the subclass has run nn.Module.__init__."""
        self.weight, self.bias = base.weight, base.bias
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.r: dict[str, int] = {}
        self.dropout: dict[str, float] = {}
        self.active: list[str] = []  # adapters that forward applies
        self.merged: list[str] = []  # adapters folded into the weight
        self.rows: list[str] | None = None  # one adapter a row, while the model's forward says so
        self._frozen_weight = None  # the original Parameter, while merged
        self.train(base.training)

    def frozen_weight(self):
        """The weight as [N, K]."""
        return self.weight

    def add(self, adapter, target: Target, dropout, init, dtype):
        """A new adapter, initialised on the CPU as PEFT does, so that one seed gives the same values everywhere.

        pissa and olora change the frozen weight, so what is merged is taken out first and merged again after.
        """
        merged = list(self.merged)
        self.unmerge()
        N, K = self.frozen_weight().shape
        A, B = nn.Linear(K, target.r, bias=False), nn.Linear(target.r, N, bias=False)
        weight = self.frozen_weight().detach()
        if init is not False:  # else as nn.Linear has just initialised them
            init_lora_(weight, A.weight, B.weight, init, target.scaling)
        self.lora_A[adapter], self.lora_B[adapter] = (m.to(weight.device, dtype) for m in (A, B))
        self.scaling[adapter], self.r[adapter], self.dropout[adapter] = target.scaling, target.r, dropout
        self.merge(merged)

    def remove(self, adapter):
        for of_adapter in (self.lora_A, self.lora_B, self.scaling, self.r, self.dropout):
            if adapter in of_adapter:
                del of_adapter[adapter]
        self.active = [name for name in self.active if name != adapter]

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


class LoraLinear(LoraLayer, nn.Linear):
    """LoraLayer in the place of an nn.Linear; it is one, weight [N, K]."""

    def __init__(self, base: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self._start(base)


class LoraConv1D(LoraLayer):
    """LoraLayer in the place of transformers' Conv1D, weight [K, N]."""

    def __init__(self, base):
        super().__init__()
        self.nx, self.nf = base.nx, base.nf
        self._start(base)

    def frozen_weight(self):
        return self.weight.t()

    def delta(self, adapter):
        return super().delta(adapter).t()


def frozen_weight(module):
    """The weight of a linear layer, wrapped or not, as [N, K]."""
    if isinstance(module, LoraLayer):
        return module.frozen_weight()
    return module.weight.t() if is_conv1d(module) else module.weight


def wrap(module) -> LoraLayer:
    """The module itself if it is a LoraLayer, else one over its Parameters, with its hooks."""
    if isinstance(module, LoraLayer):
        return module
    return _with_hooks_of(module, LoraConv1D(module) if is_conv1d(module) else LoraLinear(module))


def unwrap(layer: LoraLayer):
    """The plain nn.Linear or Conv1D over the layer's weight (the merged one, if it is merged), with its hooks."""
    if isinstance(layer, LoraLinear):
        plain = nn.Linear.__new__(nn.Linear)
        nn.Module.__init__(plain)
        plain.in_features, plain.out_features = layer.in_features, layer.out_features
    else:
        from transformers.pytorch_utils import Conv1D

        plain = Conv1D.__new__(Conv1D)
        nn.Module.__init__(plain)
        plain.nx, plain.nf = layer.nx, layer.nf
    plain.weight, plain.bias = layer.weight, layer.bias
    return _with_hooks_of(layer, plain.train(layer.training))


def _with_hooks_of(module, successor):
    for name in HOOKS:  # the dicts themselves, so that a hook's handle still removes it
        setattr(successor, name, getattr(module, name))
    return successor
