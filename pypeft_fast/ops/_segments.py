"""What the ops over rows of several adapters share: their checks, and small questions."""

import math

import torch

from .. import _storage
from . import _check, philox


def rows_of(x) -> int:
    """M of x [.., K]."""
    return math.prod(x.shape[:-1])


def most_rank(lora_A) -> int:
    return max(A.shape[0] for A in lora_A)


def at_least_float(x, _=None):
    """The dtype that a reference computes in."""
    return torch.promote_types(x.dtype, torch.float32)


def needed(grads, needs):
    """Of the gradients of a list of tensors those that are asked for, None for the rest."""
    return [grad if need else None for grad, need in zip(grads, needs, strict=True)]


def dropout(ps):
    """(thresholds, scales) of the adapters' dropout; -1 and 1.0 for an adapter without dropout."""
    return [philox.threshold(p) if p > 0 else -1 for p in ps], [philox.scale(p) if p > 0 else 1.0 for p in ps]


def check_adapters(op, like_name, like, lora_A, lora_B, scalings, ps, N, K):
    """lora_A [r_a, K] and lora_B [N, r_a], one pair, one scaling and one p for each adapter, as `like` takes them."""
    n = len(lora_A)
    if n == 0:
        raise ValueError(f"{op}: lora_A is empty; give at least one adapter")
    for name, values in (("lora_B", lora_B), ("scalings", scalings), ("ps", ps)):
        if len(values) != n:
            raise ValueError(f"{op}: {name} has {len(values)} elements for {n} adapters in lora_A; give one an adapter")
    for a, (A, B, p) in enumerate(zip(lora_A, lora_B, ps, strict=True)):
        names = f"lora_A[{a}]", f"lora_B[{a}]"
        _check.matrix(op, **{names[0]: A, names[1]: B})
        r = A.shape[0]
        if r < 1:
            raise ValueError(f"{op}: {names[0]} has shape {tuple(A.shape)}: the rank must be at least 1")
        _check.shape(op, names[0], A, (r, K), f"[r, K] for a weight of K={K}")
        _check.shape(op, names[1], B, (N, r), f"[N, r] for a weight of N={N} and {names[0]} of rank {r}")
        for name, t, first in ((names[0], A, lora_A[0]), (names[1], B, lora_B[0])):
            _check.adapter_dtype(op, like_name, like, name, t)
            _check.same_dtype(op, f"{name.partition('[')[0]}[0]", first, **{name: t})
        _check.same_device(op, like_name, like, **{names[0]: A, names[1]: B})
        _check.dropout_p(op, p)


def check_index(op, index, M, n):
    """int64 [M], each the number of one of n adapters, or -1. Values are read where no other device must be waited for
    and no trace is made."""
    if index.dtype != torch.int64:
        raise TypeError(f"{op}: adapter_index is {index.dtype}; give int64")
    _check.shape(op, "adapter_index", index, (M,), f"one number for each of the {M} rows of x")
    if torch.compiler.is_compiling() or type(index) is not torch.Tensor or not index.is_cpu or M == 0:
        return
    _storage.check(op, "adapter_index", index)
    low, high = (int(t) for t in index.aminmax())
    if low < -1 or high >= n:
        bad = low if low < -1 else high
        raise ValueError(
            f"{op}: adapter_index holds {bad}; there are {n} adapters, so give 0 to {n - 1}, or -1 for a row without "
            "one"
        )


def check_seeds(op, seeds, ps):
    if (seeds is None) != (not any(ps)):
        raise ValueError(f"{op}: seeds={seeds} with ps={ps}: give seeds if and only if some p > 0")
    if seeds is not None and (seeds.dtype != torch.int64 or seeds.shape != (len(ps),)):
        raise TypeError(
            f"{op}: seeds must be an int64 tensor of {len(ps)} elements, one an adapter; got {seeds.dtype} "
            f"{tuple(seeds.shape)}"
        )
