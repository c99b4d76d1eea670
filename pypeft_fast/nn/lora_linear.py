"""LoRALinear: nn.Linear with one LoRA adapter over its frozen weight."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..autograd.dora import dora_linear
from ..autograd.dora_norm import NormCache, dora_norm
from ..autograd.lora import lora_linear
from ..ops import _check
from .merge import dora_weight, lora_delta, merged_weight


class LoRALinear(nn.Linear):
    """y = x W^T + b + scaling * (drop(x) A^T) B^T with W and b frozen (Hu et al., arXiv:2106.09685).

    A drop-in for nn.Linear: same constructor, same weight and bias, and lora_A [r, K] and lora_B [N, r] to train.
    lora_A starts as nn.Linear's weight does, lora_B at zero, so that a new layer computes what the frozen one does.

    Args:
        in_features, out_features, bias: as in nn.Linear (K, N).
        r: rank of the update, at least 1.
        lora_alpha: scaling is lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora (arXiv:2312.03732).
        lora_dropout: probability in [0, 1) of dropping an element of x on the low-rank branch, in training mode.
        use_dora: also train the length of every row of the weight, lora_magnitude_vector [N] (arXiv:2402.09353);
            `dora_linear` gives the formula. It starts at the length that the row has.
        device, dtype: of weight and bias. The adapter is float32 over a half-precision weight, else of that dtype.

    Raises:
        ValueError: r or lora_dropout is out of range; the message names it.
    """

    def __init__(
        self,
        in_features,
        out_features,
        bias=True,
        *,
        r=8,
        lora_alpha=16,
        lora_dropout=0.0,
        use_rslora=False,
        use_dora=False,
        device=None,
        dtype=None,
    ):
        super().__init__(in_features, out_features, bias, device, dtype)
        self._add_adapter(r, lora_alpha, lora_dropout, use_rslora, use_dora)

    @classmethod
    def from_linear(cls, linear, *, r=8, lora_alpha=16, lora_dropout=0.0, use_rslora=False, use_dora=False):
        """A LoRALinear over the Parameters of `linear` themselves: nothing is copied, and they are frozen there too.

        Raises TypeError if `linear` is not exactly an nn.Linear: a subclass may compute something else.
        """
        if type(linear) is not nn.Linear:
            raise TypeError(f"from_linear: linear is a {type(linear).__qualname__}, expected a torch.nn.Linear")
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.in_features, layer.out_features = linear.in_features, linear.out_features
        layer.weight, layer.bias = linear.weight, linear.bias
        layer._add_adapter(r, lora_alpha, lora_dropout, use_rslora, use_dora)
        return layer.train(linear.training)

    def _add_adapter(self, r, lora_alpha, lora_dropout, use_rslora, use_dora):
        if not isinstance(r, int) or r < 1:
            raise ValueError(f"r={r!r} must be an integer of at least 1")
        _check.dropout_p("lora_dropout", lora_dropout)
        self.r, self.lora_alpha, self.lora_dropout, self.use_rslora = r, lora_alpha, lora_dropout, use_rslora
        self.use_dora = use_dora
        self._norm_cache = NormCache()
        self._frozen_weight = None  # the original weight, while merged
        half = self.weight.dtype in (torch.bfloat16, torch.float16)
        like = dict(device=self.weight.device, dtype=torch.float32 if half else self.weight.dtype)
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.empty(r, self.in_features, **like))
        self.lora_B = nn.Parameter(torch.empty(self.out_features, r, **like))
        if use_dora:
            self.lora_magnitude_vector = nn.Parameter(torch.empty(self.out_features, **like))
        self.reset_lora_parameters()

    def reset_lora_parameters(self):
        """lora_A uniform in +-1/sqrt(K), as nn.Linear's own weight; lora_B zero; for DoRA the lengths of the rows."""
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)
        if self.use_dora:
            weight = self._frozen_weight[0] if self.merged else self.weight
            with torch.no_grad():
                self.lora_magnitude_vector.copy_(dora_norm(weight, self.lora_A, self.lora_B, self.scaling))

    @property
    def scaling(self) -> float:
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def forward(self, x):
        if self.merged:
            return F.linear(x, self.weight, self.bias)
        options = dict(scaling=self.scaling, dropout_p=self.lora_dropout, training=self.training)
        if not self.use_dora:
            return lora_linear(x, self.weight, self.lora_A, self.lora_B, self.bias, **options)
        magnitude, cache = self.lora_magnitude_vector, self._norm_cache
        return dora_linear(x, self.weight, self.lora_A, self.lora_B, magnitude, self.bias, norm_cache=cache, **options)

    def train(self, mode=True):
        self._norm_cache.clear()
        return super().train(mode)

    @property
    def merged(self) -> bool:
        return self._frozen_weight is not None

    def merge(self):
        """Folds the adapter into a weight of its own, summed in float32: the layer then is a plain linear layer.

        The original weight is kept beside it, since subtracting the update would not give its bits back; a module
        that shares it does not change. The state dict stays that of the unmerged layer.
        """
        if not self.merged:
            self._frozen_weight = [self.weight]  # in a list, where nn.Module does not register it
            A, B = self.lora_A, self.lora_B
            if self.use_dora:
                merged = dora_weight(self.weight, A, B, self.lora_magnitude_vector, self.scaling)
            else:
                merged = merged_weight(self.weight, [lora_delta(A, B, self.scaling)])
            self.weight = nn.Parameter(merged, requires_grad=False)

    def unmerge(self):
        """Puts the original weight back, bit for bit."""
        if self.merged:
            self.weight, self._frozen_weight = self._frozen_weight[0], None

    def _apply(self, fn, recurse=True):  # .to(), .half(), .cuda(): the original is cast, and merged again
        merged = self.merged
        self.unmerge()
        super()._apply(fn, recurse)
        self._norm_cache.clear()
        if merged:
            self.merge()
        return self

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.merged:
            weight = self._frozen_weight[0]
            destination[prefix + "weight"] = weight if keep_vars else weight.detach()

    def _load_from_state_dict(self, *args):
        self.unmerge()
        self._norm_cache.clear()
        super()._load_from_state_dict(*args)

    def extra_repr(self):
        text = f"{super().extra_repr()}, r={self.r}, scaling={self.scaling:g}, lora_dropout={self.lora_dropout}"
        return f"{text}, use_dora=True" if self.use_dora else text
