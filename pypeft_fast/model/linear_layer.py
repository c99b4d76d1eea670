"""A frozen linear layer with named adapters: what a method puts in the place of nn.Linear and Conv1D."""

import torch
import torch.nn.functional as F
from torch import nn

from ..autograd.bitfit import bitfit_linear
from ..autograd.dora import dora_linear
from ..autograd.dora_norm import NormCache, dora_norm
from ..autograd.ia3 import ia3_linear
from ..autograd.lora import lora_linear
from ..nn.init import init_lora_
from .layer import AdapterLayer, by_rows, with_hooks_of
from .merged import merged_bias, merged_weight
from .stacked import stacked
from .targets import Target, is_conv1d


class Magnitude(nn.Module):
    """DoRA's lengths of the weight's rows; a module, so that the parameter is named as PEFT names it."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)


class AdaptedLayer(AdapterLayer):
    """y = l_out * (V (l_in * x) + c), then the bottlenecks: what the active adapters make of y = W x + b.

    V is W with the sum of the LoRA and DoRA adapters' updates, l_out and l_in the products of the IA3 adapters' factors
    and c the BitFit adapter's bias or b. Adapters of several methods may be active together; a DoRA adapter's update is
    that of W alone, where PEFT's is of W with the adapters before it in the list.

    The frozen weight and bias are the Parameters of the layer that this one replaces. Parameters are named as PEFT
    names them: `lora_A.<adapter>.weight` [r, K], `ia3_l.<adapter>` [N, 1] or [1, K]. `bitfit_bias.<adapter>` [N] and
    `bottleneck.<adapter>` are this package's own.
    """

    stands_for_linear = True
    holders = ("lora_A", "lora_B", "lora_magnitude_vector", "ia3_l", "bitfit_bias", "bottleneck")

    def _start(self, base):
        """Takes over the frozen layer's Parameters; the subclass has run nn.Module.__init__."""
        super()._start()
        self.weight, self.bias = base.weight, base.bias
        self.lora_A, self.lora_B, self.lora_magnitude_vector = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self.ia3_l, self.bitfit_bias, self.bottleneck = nn.ParameterDict(), nn.ParameterDict(), nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.r: dict[str, int] = {}
        self.dropout: dict[str, float] = {}
        self.norms: dict[str, NormCache] = {}
        self.feedforward: dict[str, bool] = {}  # whether an IA3 adapter's factors are of the inputs
        self.taps: dict[str, list] = {}  # where a parallel bottleneck adapter's input arrives from another layer,
        self.tapped: dict[str, list] = {}  # which puts it there
        self.merged: list[str] = []  # adapters folded into weight and bias
        self._frozen = None  # the original (weight, bias), while merged: a tuple, which nn.Module does not register
        self.train(base.training)

    def frozen_weight(self):
        """The weight as [N, K]."""
        return self.weight

    def adapter_dtype(self, autocast):
        """Adapters over a half-precision weight are float32, if asked."""
        half = self.weight.dtype in (torch.float16, torch.bfloat16)
        return torch.float32 if half and autocast else self.weight.dtype

    def add_lora(self, adapter, target: Target, dropout, init, use_dora, dtype):
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
        if use_dora:
            norm = dora_norm(weight, self.lora_A[adapter].weight, self.lora_B[adapter].weight, target.scaling)
            self.lora_magnitude_vector[adapter] = Magnitude(norm.to(dtype))
            self.norms[adapter] = NormCache()
        self.merge(merged)

    def remove(self, adapter):
        super().remove(adapter)
        for of_adapter in (self.scaling, self.r, self.dropout, self.norms, self.feedforward, self.taps, self.tapped):
            of_adapter.pop(adapter, None)

    def clash(self, names):
        trained = [name for name in names if name in self.bitfit_bias]
        return f"{' and '.join(trained)} each have a bias of one layer; activate one of them" if trained[1:] else None

    def forward(self, x):
        if self.rows is not None:
            if self.merged:
                raise ValueError(
                    f"adapter_names cannot be used while {self.merged} are merged; unmerge_adapter() first"
                )
            if any(name in self.taps for name in self.rows):
                raise ValueError("adapter_names cannot name a parallel bottleneck adapter; use set_adapter")
            return by_rows(x, self.rows, lambda part, name: self._apply_adapters(part, [name]))
        return self._apply_adapters(x, [] if self.merged else self.active)

    def as_lora(self, x):
        """What lora_linear needs besides an input like x, if one call of it is all that forward does; else None."""
        if self.rows is not None or self.merged or any(name in self.tapped for name in self.active):
            return None
        here = [(holder, name) for holder in self.holders for name in self.active if name in getattr(self, holder)]
        if [holder for holder, _ in here] != ["lora_A", "lora_B"]:
            return None
        return self._lora_arguments(here[0][1], self.bias if self.bias is None else self.bias.to(x.dtype))

    def _lora_arguments(self, name, bias):
        A, B = self.lora_A[name].weight, self.lora_B[name].weight
        options = dict(scaling=self.scaling[name], dropout_p=self.dropout[name], training=self.training)
        return dict(weight=self.frozen_weight(), lora_A=A, lora_B=B, bias=bias, **options)

    def _apply_adapters(self, x, names):
        for name in names:
            if name in self.tapped:
                self.tapped[name][:] = [x]
        factors = [name for name in names if name in self.ia3_l]
        updates = [name for name in names if name in self.lora_A]
        bias = next((self.bitfit_bias[name] for name in names if name in self.bitfit_bias), self.bias)
        if len(factors) == 1 and not updates:
            (name,) = factors
            bias = bias if bias is None else bias.to(x.dtype)
            l = self.ia3_l[name].flatten()  # noqa: E741
            y = ia3_linear(x, self.frozen_weight(), l, bias, feedforward=self.feedforward[name])
        else:
            inner = self._scale(x, [name for name in factors if self.feedforward[name]])
            y = self._updated(inner, updates, bias)
            y = self._scale(y, [name for name in factors if not self.feedforward[name]])
        for name in names:
            if name in self.bottleneck:
                y = self.bottleneck[name](self.taps[name].pop(), y) if name in self.taps else self.bottleneck[name](y)
        return y

    def _scale(self, x, names):
        for name in names:
            x = (x * self.ia3_l[name].flatten()).to(x.dtype)
        return x

    def _updated(self, x, names, bias):
        if not names:
            plain = bias is self.bias
            return F.linear(x, self.frozen_weight(), bias) if plain else bitfit_linear(x, self.frozen_weight(), bias)
        undropped = [n for n in names if n not in self.lora_magnitude_vector and not self._drops(n)]
        together = undropped or names[:1]
        y = self._with_updates(x, together, bias if bias is None else bias.to(x.dtype))
        for name in names:
            if name in together:
                continue
            if name in self.lora_magnitude_vector:
                y = y + (self._with_updates(x, [name], None) - F.linear(x, self.frozen_weight()))
                continue
            # Plain PyTorch: each adapter drops elements of its own, at a rate and for a rank of its own, and one fused
            # call takes several masks only where rates and ranks agree.
            A, B = self.lora_A[name].weight, self.lora_B[name].weight
            low = F.linear(F.dropout(x.to(A.dtype), self.dropout[name], self.training), A)
            y = y + (F.linear(low, B) * self.scaling[name]).to(y.dtype)
        return y

    def _drops(self, name):
        return self.training and self.dropout[name] > 0

    def _with_updates(self, x, names, bias):
        """The layer with one adapter of LoRA or DoRA, or with several of LoRA that drop nothing, in one fused call."""
        name = names[0]
        if len(names) > 1:
            A, B = stacked([(self.lora_A[n].weight, self.lora_B[n].weight, self.scaling[n]) for n in names])
            return lora_linear(x, self.frozen_weight(), A, B, bias)
        arguments = self._lora_arguments(name, bias)
        if name not in self.lora_magnitude_vector:
            return lora_linear(x, **arguments)
        lengths = self.lora_magnitude_vector[name].weight
        return dora_linear(x, magnitude=lengths, norm_cache=self.norms[name], **arguments)

    def merge(self, adapters, safe=False):
        """Folds adapters into a weight and a bias of its own, in float32; the originals are kept for unmerge.

        Raises ValueError for a bottleneck adapter, which is no linear map; with safe, also for results that are not
        finite, instead of merging them.
        """
        adapters = [name for name in adapters if name in self.adapters() and name not in self.merged]
        if not adapters:
            return
        bent = [name for name in adapters if name in self.bottleneck]
        if bent:
            raise ValueError(f"the bottleneck adapter {bent[0]!r} cannot be merged into a weight: it is no linear map")
        weight, bias = self.weight, self.bias
        frozen = (weight, bias) if self._frozen is None else self._frozen
        names = self.merged + adapters
        self.weight, self.bias = frozen
        new_weight, new_bias = merged_weight(self, names), merged_bias(self, names)
        if safe and not all(t is None or t.isfinite().all() for t in (new_weight, new_bias)):
            self.weight, self.bias = weight, bias
            raise ValueError(f"merging {adapters} would give NaN or infinite weights; the adapter is broken")
        self._frozen, self.merged = frozen, names
        self.weight = nn.Parameter(new_weight, requires_grad=False)
        if new_bias is not frozen[1]:
            self.bias = nn.Parameter(new_bias, requires_grad=False)

    def merge_state(self):
        """What `restore` takes back: weight and bias, and what is folded into them."""
        return self.weight, self.bias, self._frozen, list(self.merged)

    def restore(self, state):
        self.weight, self.bias, self._frozen, self.merged = state

    def unmerge(self):
        """Puts the original weight and bias back, bit for bit."""
        if self.merged:
            (self.weight, self.bias), self._frozen, self.merged = self._frozen, None, []

    def train(self, mode=True):
        for cache in self.norms.values():
            cache.clear()
        return super().train(mode)

    def _load_from_state_dict(self, *args):
        for cache in self.norms.values():
            cache.clear()
        super()._load_from_state_dict(*args)

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
        return _plain(self, plain)


class AdaptedConv1D(AdaptedLayer):
    """In the place of transformers' Conv1D, weight [K, N]."""

    def __init__(self, base):
        super().__init__()
        self.nx, self.nf = base.nx, base.nf
        self._start(base)

    def frozen_weight(self):
        return self.weight.t()

    def replacement(self, adapters=None):
        """The plain Conv1D, as for nn.Linear."""
        from transformers.pytorch_utils import Conv1D

        plain = Conv1D.__new__(Conv1D)
        nn.Module.__init__(plain)
        plain.nx, plain.nf = self.nx, self.nf
        return _plain(self, plain)


def _plain(layer, plain):
    plain.weight, plain.bias = layer.weight, layer.bias
    return with_hooks_of(layer, plain.train(layer.training))


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
