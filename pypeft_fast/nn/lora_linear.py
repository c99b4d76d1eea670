"""LoRALinear: nn.Linear with one LoRA adapter over its frozen weight."""

import math
import numbers

import torch
from torch import nn

from ..autograd.dora import dora_linear
from ..autograd.dora_norm import row_norm
from ..autograd.lora import lora_linear
from ..ops import _check
from .adapter_linear import AdapterLinear
from .frozen_linear import linear
from .merge import dora_weight, lora_delta, merged_weight


class LoRALinear(AdapterLinear):
    """y = x W^T + b + scaling * (drop(x) A^T) B^T with W and b frozen (Hu et al., arXiv:2106.09685).

    A drop-in for nn.Linear: same constructor, same weight and bias, and lora_A [r, K] and lora_B [N, r] to train.
    lora_A starts as nn.Linear's weight does, lora_B at zero, so that a new layer computes what the frozen one does.

    Args:
        in_features, out_features, bias: as in nn.Linear (K, N).
        r: rank of the update, at least 1.
        lora_alpha: scaling is lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora (arXiv:2312.03732).
        lora_dropout: probability in [0, 1) of dropping an element of x on the low-rank branch, in training mode.
        use_dora: also train the length of every row of the weight, lora_magnitude_vector [N] (arXiv:2402.09353);
            `dora_linear` gives the formula. It starts at the length that the row has, also after load_state_dict of
            the weight alone; after another change of the weight call reset_lora_parameters().
        device, dtype: of weight and bias. The adapter is float32 over a half-precision weight, else of that dtype.

    `from_linear` takes bitsandbytes' Linear4bit and Linear8bitLt and transformers' FP8Linear too: the weight stays as
    it is stored, and is decoded while it is multiplied.

    Raises:
        ValueError: r, lora_alpha or lora_dropout is out of range; the message names it.
        TypeError: lora_alpha or lora_dropout is no number.
    """

    _reads_frozen = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        r: int = 8,
        lora_alpha: float = 16,
        lora_dropout: float = 0.0,
        use_rslora: bool = False,
        use_dora: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(in_features, out_features, bias, device, dtype)
        self._add_adapter(r, lora_alpha, lora_dropout, use_rslora, use_dora)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Module,
        *,
        r: int = 8,
        lora_alpha: float = 16,
        lora_dropout: float = 0.0,
        use_rslora: bool = False,
        use_dora: bool = False,
    ) -> "LoRALinear":
        """A LoRALinear over the Parameters of `linear` themselves: nothing is copied, and they are frozen there too.

        Also over transformers' Conv1D, and over bitsandbytes' Linear4bit and Linear8bitLt and transformers' FP8Linear.
        Raises TypeError for any other layer: a subclass of nn.Linear may compute something else; ValueError if it has
        hooks or a forward of its own, which the new layer would not run.
        """
        layer = cls._sharing(linear)
        layer._add_adapter(r, lora_alpha, lora_dropout, use_rslora, use_dora)
        return layer

    def _add_adapter(self, r, lora_alpha, lora_dropout, use_rslora, use_dora):
        if not isinstance(r, int) or isinstance(r, bool) or r < 1:
            raise ValueError(f"r={r!r} must be an integer of at least 1")
        for name, value in (("lora_alpha", lora_alpha), ("lora_dropout", lora_dropout)):
            if not isinstance(value, numbers.Real) or isinstance(value, bool):
                raise TypeError(f"{name}={value!r} must be a number")
        if not 0 < lora_alpha < math.inf:
            raise ValueError(f"lora_alpha={lora_alpha!r} must be above 0 and finite")
        _check.dropout_p("lora_dropout", lora_dropout)
        self.r, self.lora_alpha, self.lora_dropout, self.use_rslora = r, lora_alpha, lora_dropout, use_rslora
        self.use_dora = use_dora
        like = self._freeze()
        self.lora_A = nn.Parameter(torch.empty(r, self.in_features, **like))
        self.lora_B = nn.Parameter(torch.empty(self.out_features, r, **like))
        if use_dora:
            self.lora_magnitude_vector = nn.Parameter(torch.empty(self.out_features, **like))
        self.reset_lora_parameters()

    def reset_lora_parameters(self) -> None:
        """lora_A uniform in +-1/sqrt(K), as nn.Linear's own weight; lora_B zero; for DoRA the lengths of the rows."""
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)
        if self.use_dora:
            self._reset_magnitude()

    @torch.no_grad()
    def _reset_magnitude(self):
        weight = self._frozen["weight"] if self._frozen is not None else self._dense_weight()
        self.lora_magnitude_vector.copy_(row_norm(weight))  # lora_B is zero

    def _reset_adapter(self):
        self.reset_lora_parameters()

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # If the weight comes alone, as from a base model's file, a new adapter has the lengths of the new weight.
        comes = f"{prefix}weight" in state_dict and f"{prefix}lora_magnitude_vector" not in state_dict
        is_new = comes and self.use_dora and self._is_new()
        super()._load_from_state_dict(state_dict, prefix, *args)
        if is_new and state_dict[f"{prefix}weight"].shape == self.weight.shape:
            self._reset_magnitude()

    def _is_new(self) -> bool:
        """Whether the adapter changes nothing: lora_B is zero, and the magnitude is the length of the rows."""
        its = self.weight, self.lora_B, self.lora_magnitude_vector
        if any(p is None or p.is_meta for p in its) or self.lora_B.any():
            return False
        return torch.allclose(self.lora_magnitude_vector, row_norm(self.weight).to(self.lora_magnitude_vector), 1e-2)

    @property
    def scaling(self) -> float:
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.merged:
            return self._over(x, linear)
        options = dict(scaling=self.scaling, dropout_p=self.lora_dropout, training=self.training)
        A, B = self.lora_A, self.lora_B
        if not self.use_dora:
            return self._over(x, lambda x, weight, bias, A, B: lora_linear(x, weight, A, B, bias, **options), A, B)
        m = self.lora_magnitude_vector
        return self._over(x, lambda x, weight, bias, *its: dora_linear(x, weight, *its, bias, **options), A, B, m)

    def _merged_values(self):
        A, B, weight = self.lora_A, self.lora_B, self._dense_weight()
        if self.use_dora:
            return {"weight": dora_weight(weight, A, B, self.lora_magnitude_vector, self.scaling)}
        return {"weight": merged_weight(weight, [lora_delta(A, B, self.scaling)])}

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, r={self.r}, scaling={self.scaling:g}, lora_dropout={self.lora_dropout}"
        return f"{text}, use_dora=True" if self.use_dora else text
