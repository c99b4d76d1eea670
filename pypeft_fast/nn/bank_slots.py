"""The matrices of an adapter on their way into a slot of a MultiLoRALinear: checked first, then copied in one call."""

import math
import numbers

import torch

from ..ops import _check


def check_tensor(doing: str, name: str, matrix, slot: torch.Tensor) -> None:
    """TypeError, unless `matrix` is a dense floating-point tensor with values; slot: a parameter of the bank."""
    _check.tensors(doing, **{name: matrix})
    _check.floating(doing, name, matrix)
    if matrix.is_meta and not slot.is_meta:
        raise TypeError(f"{doing}: {name} is on the device meta, without values; give a tensor on {slot.device}")


def check_values(doing: str, name: str, matrix: torch.Tensor, slot: torch.Tensor) -> None:
    """ValueError if a value is NaN or infinite in the dtype of the slots."""
    if slot.is_meta or torch.isfinite(matrix.detach().to(slot.dtype)).all():
        return
    raise ValueError(f"{doing}: {name} has values that are NaN or infinite in {slot.dtype}; give finite ones")


def check_number(doing: str, scaling) -> None:
    """ValueError if scaling is no finite number."""
    if not isinstance(scaling, numbers.Real) or isinstance(scaling, bool) or not math.isfinite(scaling):
        raise ValueError(f"{doing}: scaling={scaling!r} must be a number that is finite")


def is_held(its) -> bool:
    """Whether slot, r, scaling and dropout are such as `add` accepts, apart from the bank's size."""
    return (
        all(type(n) is int for n in (its.slot, its.r))
        and all(type(n) in (int, float) for n in (its.scaling, its.dropout))
        and (its.slot >= 0 and its.r >= 1 and math.isfinite(its.scaling) and 0 <= its.dropout < 1)
    )


@torch.no_grad()
def fill(A: torch.Tensor, B: torch.Tensor, lora_A: torch.Tensor, lora_B: torch.Tensor) -> None:
    """Copies lora_A [r, K] into A [max_rank, K] and lora_B [N, r] into B [N, max_rank]; the rest of A and B is zero.

    Both are made whole elsewhere first: lora_A and lora_B may be parts of A and B, and if making them fails, A and B
    stay as they are.
    """
    r = lora_A.shape[0]
    new_A, new_B = torch.zeros_like(A), torch.zeros_like(B)
    new_A[:r], new_B[:, :r] = lora_A, lora_B
    torch._foreach_copy_([A, B], [new_A, new_B])
