"""MultiLoRALinear: nn.Linear with a bank of named LoRA adapters over its frozen weight, one for each row of a batch."""

import json
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from ..autograd.multi_lora import multi_lora_linear
from ..ops import _check
from . import bank_slots
from .adapter_linear import AdapterLinear


@dataclass(frozen=True)
class Held:
    """What the bank knows of one adapter beside its parameters."""

    slot: int
    r: int
    scaling: float
    dropout: float


class MultiLoRALinear(AdapterLinear):
    """y_m = W x_m + b + scaling_a * B_a A_a drop_a(x_m), a the adapter of row m, or none; W and b frozen.

    `multi_lora_linear` as a module. Its parameters are one pair for each of max_adapters slots, lora_A[i]
    [max_rank, K] and lora_B[i] [N, max_rank], made once: an adapter is copied into a free slot, so that add, replace
    and remove allocate nothing, and torch.compile's graph stays valid (in training mode, while the dropout rates stay
    as they are). Behind an adapter's own rank its slot is zero, and so are the gradients there. The state that an
    optimiser keeps of a slot is not the bank's: give an adapter that is to train an optimiser of its own.

    Args:
        in_features, out_features, bias: as in nn.Linear (K, N).
        max_adapters, max_rank: what the bank has room for.
        device, dtype: of weight and bias. Adapters are float32 over a half-precision weight, else of that dtype.

    Raises:
        ValueError: max_adapters or max_rank is no integer of at least 1; the message names it.
    """

    _reads_frozen = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        max_adapters: int = 8,
        max_rank: int = 16,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(in_features, out_features, bias, device, dtype)
        self._add_slots(max_adapters, max_rank)

    @classmethod
    def from_linear(cls, linear: nn.Module, *, max_adapters: int = 8, max_rank: int = 16) -> "MultiLoRALinear":
        """An empty bank over the Parameters of `linear` themselves, which are frozen; quantised layers too.

        Raises TypeError and ValueError as `LoRALinear.from_linear` does.
        """
        layer = cls._sharing(linear)
        layer._add_slots(max_adapters, max_rank)
        return layer

    def _add_slots(self, max_adapters, max_rank):
        for name, value in (("max_adapters", max_adapters), ("max_rank", max_rank)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r} must be an integer of at least 1")
        self.max_adapters, self.max_rank = max_adapters, max_rank
        like = self._freeze()
        slots = range(max_adapters)
        self.lora_A = nn.ParameterList(torch.zeros(max_rank, self.in_features, **like) for _ in slots)
        self.lora_B = nn.ParameterList(torch.zeros(self.out_features, max_rank, **like) for _ in slots)
        # What a compiled graph reads, which takes plain numbers for constants.
        self.register_buffer("_factors", torch.empty(max_adapters, device=like["device"]), persistent=False)
        self._empty()

    def _empty(self):
        self._held: dict[str, Held] = {}
        self._factors.fill_(1)
        self._free = deque(range(self.max_adapters))  # the one that has been free for longest comes first
        n = self.max_adapters
        self._ranks, self._scalings, self._dropouts = [self.max_rank] * n, [1.0] * n, [0.0] * n

    def _reset_adapter(self):
        for parameter in (*self.lora_A, *self.lora_B):
            nn.init.zeros_(parameter)
        self._empty()

    @property
    def adapter_names(self) -> list[str]:
        """Of the adapters in the bank, in the order in which they were added."""
        return list(self._held)

    def add(
        self, name: str, lora_A: torch.Tensor, lora_B: torch.Tensor, *, scaling: float = 1.0, dropout: float = 0.0
    ) -> int:
        """Copies an adapter, lora_A [r, K] and lora_B [N, r] with r of at most max_rank, into a free slot; its number.

        ValueError: the name is taken, the bank is full, or a shape, value, scaling or dropout does not fit. TypeError:
        a matrix is no dense floating-point tensor. Nothing changes.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(f"add: name={name!r} must be a string that is not empty")
        if name in self._held:
            raise ValueError(f"add: name={name!r} is in the bank; give another name, or call replace")
        self._check("add", lora_A, lora_B, scaling, dropout)
        if not self._free:
            raise ValueError(
                f"add: the bank is full: max_adapters={self.max_adapters} are {', '.join(self._held)}; remove one, or "
                f"make a bank with more room for name={name!r}"
            )
        return self._put(name, self._free.popleft(), lora_A, lora_B, scaling, dropout)

    def replace(
        self, name: str, lora_A: torch.Tensor, lora_B: torch.Tensor, *, scaling: float = 1.0, dropout: float = 0.0
    ) -> int:
        """Copies another adapter over the one of this name, in its slot. Errors as in `add`; KeyError: no name."""
        slot = self._of("replace", name).slot
        self._check("replace", lora_A, lora_B, scaling, dropout)
        return self._put(name, slot, lora_A, lora_B, scaling, dropout)

    def remove(self, name: str) -> None:
        """Gives the slot of this name free. Rows whose index was made before still meet the adapter, until another one
        takes its slot, the one free for longest first. KeyError: no such name."""
        self._free.append(self._of("remove", name).slot)
        del self._held[name]

    def parameters_of(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """The slot of this name, lora_A [max_rank, K] and lora_B [N, max_rank], as for an optimiser of its own."""
        slot = self._of("parameters_of", name).slot
        return self.lora_A[slot], self.lora_B[slot]

    def index(self, names: Sequence[str | None]) -> torch.Tensor:
        """int64, the slot of each name and -1 for None, on the device of the adapters. KeyError: no such name."""
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise TypeError(f"index: names={names!r} must be a list of names, one a row, with None for no adapter")
        slots = [-1 if name is None else self._of("index", name).slot for name in names]
        return torch.tensor(slots, dtype=torch.int64, device=self.lora_A[0].device)

    def forward(self, x: torch.Tensor, adapters: Sequence[str | None] | torch.Tensor) -> torch.Tensor:
        """y [.., N] of x [.., K]. adapters: a name, or None for the frozen layer alone, for each row of x's first
        dimension or for each row; or what `index` makes of them."""
        index = adapters if isinstance(adapters, torch.Tensor) else self.index(adapters)
        A, B, scalings = list(self.lora_A), list(self.lora_B), self._scalings
        if torch.compiler.is_compiling():
            B = [b * factor for b, factor in zip(B, self._factors.unbind(), strict=True)]
            scalings = 1.0
        else:
            for slot, r in enumerate(self._ranks):
                if r < self.max_rank:  # only the adapter's own rank is multiplied
                    A[slot], B[slot] = A[slot][:r], B[slot][:, :r]
        ps = self._dropouts if self.training else 0.0
        n, options = self.max_adapters, dict(scalings=scalings, dropout_ps=ps)
        return self._over(
            x, lambda x, W, b, *its: multi_lora_linear(x, W, its[:n], its[n:], index, b, **options), *A, *B
        )

    def _of(self, doing, name) -> Held:
        if not isinstance(name, str) or name not in self._held:
            which = f"holds {', '.join(self._held)}; give one of these" if self._held else "is empty; add one first"
            raise KeyError(f"{doing}: name={name!r} is not in the bank, which {which}")
        return self._held[name]

    def _check(self, doing, lora_A, lora_B, scaling, dropout):
        for name, matrix in (("lora_A", lora_A), ("lora_B", lora_B)):
            bank_slots.check_tensor(doing, name, matrix, self.lora_A[0])
        if lora_A.dim() != 2 or not 1 <= lora_A.shape[0] <= self.max_rank or lora_A.shape[1] != self.in_features:
            raise ValueError(
                f"{doing}: lora_A has shape {tuple(lora_A.shape)}, expected (r, {self.in_features}) with r from 1 to "
                f"max_rank={self.max_rank}"
            )
        _check.shape(doing, "lora_B", lora_B, (self.out_features, lora_A.shape[0]), "[N, r] for r of lora_A")
        bank_slots.check_number(doing, scaling)
        _check.dropout_p(doing, _check.number(doing, "dropout", dropout))
        for name, matrix in (("lora_A", lora_A), ("lora_B", lora_B)):
            bank_slots.check_values(doing, name, matrix, self.lora_A[0])

    def _put(self, name, slot, lora_A, lora_B, scaling, dropout):
        A, B, r = self.lora_A[slot], self.lora_B[slot], lora_A.shape[0]
        bank_slots.fill(A, B, lora_A, lora_B)
        A.grad = B.grad = None
        self._hold(name, Held(slot, r, float(scaling), float(dropout)))
        return slot

    def _hold(self, name, held):
        self._held[name], slot = held, held.slot
        self._ranks[slot], self._scalings[slot], self._dropouts[slot] = held.r, held.scaling, held.dropout
        self._factors[slot] = held.scaling

    def merge(self, force: bool = False) -> float:
        """RuntimeError: rows have different adapters, and a weight can hold one."""
        raise RuntimeError("merge: a bank holds several adapters; put one into a LoRALinear and merge that")

    def get_extra_state(self) -> torch.Tensor:
        """The names, and what belongs to them, in a state dict: JSON as uint8, since safetensors takes tensors only."""
        state = {name: asdict(held) for name, held in self._held.items()}
        return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """ValueError, before any change, if this is no state of a bank, or that of one with more room."""
        try:
            found = {name: Held(**its) for name, its in json.loads(bytes(state.tolist())).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                "load_state_dict: _extra_state holds no adapters' names; give the state_dict of a MultiLoRALinear"
            ) from error
        if not all(map(bank_slots.is_held, found.values())) or len({its.slot for its in found.values()}) < len(found):
            raise ValueError(f"load_state_dict: _extra_state holds adapters that no bank can hold: {found}")
        for name, its in found.items():
            if its.slot >= self.max_adapters or its.r > self.max_rank:
                raise ValueError(
                    f"load_state_dict: adapter {name!r} has slot={its.slot} and r={its.r}, but this bank has "
                    f"max_adapters={self.max_adapters} and max_rank={self.max_rank}; make a bank with more room"
                )
        self._empty()
        for name, its in found.items():
            self._hold(name, its)
            self._free.remove(its.slot)

    def extra_repr(self) -> str:
        names = ", ".join(self._held) or "none"
        return f"{super().extra_repr()}, max_adapters={self.max_adapters}, max_rank={self.max_rank}, adapters: {names}"
