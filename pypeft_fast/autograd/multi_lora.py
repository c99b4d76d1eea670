"""A frozen linear layer whose rows belong to different LoRA adapters, differentiable: one op each way.

Saved for backward: x itself, the index, s [M, max r] and the packed mask. Never a gathered, dropped or cast x.
"""

import numbers
from collections.abc import Iterable, Sequence

import torch

from .._dispatcher import PLAIN
from ..frozen.operand import Frozen, crossed, is_stored, operand, stored
from ..ops import _check, _segments, philox
from ..ops.multi_lora_backward import multi_lora_backward
from ..ops.multi_lora_forward import multi_lora_forward
from ._autocast import autocast_as_linear, autocast_lora
from ._first_order import apply_of, first_order, takes_a_function
from ._still_trains import still_trains

NAME = "multi_lora_linear"


class MultiLoRALinearFunction(torch.autograd.Function):
    """forward(x, weight, bias, index, seeds, scalings, ps, n, *A, *B, *its): n matrices A, n matrices B, and of a
    quantised weight what `stored` gives beside its first tensor."""

    @staticmethod
    def forward(ctx, x, weight, bias, index, seeds, scalings, ps, n, *rest):
        A, B, its = rest[:n], rest[n : 2 * n], rest[2 * n :]
        y, s, mask = multi_lora_forward(
            x, weight, bias, list(A), list(B), index, list(scalings), list(ps), seeds, *(its and crossed(*its))
        )
        need_x, need_weight = ctx.needs_input_grad[:2]
        need_A, need_B = _any(ctx.needs_input_grad, n)
        adapts = need_x or need_A or need_B
        ctx.save_for_backward(
            x if need_A or need_weight else None,
            weight if need_x else None,
            index if adapts else None,
            s if adapts else None,
            mask if any(ps) and (need_x or need_A) else None,
            *(t if adapts else None for t in (*A, *B)),
            *(its[1:] if need_x else ()),
        )
        ctx.format, ctx.count = its[:1] if need_x else (), len(its)
        ctx.scalings, ctx.ps, ctx.n = scalings, ps, n
        return y

    @staticmethod
    @first_order
    def backward(ctx, saved, dY):
        n, needs = ctx.n, ctx.needs_input_grad
        x, weight, index, s, mask = saved[:5]
        A, B, scales = saved[5 : 5 + n], saved[5 + n : 5 + 2 * n], saved[5 + 2 * n :]
        need_x, need_weight, need_bias = needs[:3]
        need_A, need_B = _any(needs, n)
        for a, lora_B in enumerate(B):
            still_trains(NAME, f"lora_B[{a}]", lora_B, needs[8 + n + a])
        dX = dW = db = None
        dA = dB = (None,) * n
        if need_x or need_A or need_B:
            options = list(ctx.scalings), list(ctx.ps), need_x, need_A, need_B
            its = crossed(*ctx.format, *scales)
            dX, dA, dB = multi_lora_backward(dY, x, weight, list(A), list(B), index, s, mask, *options, *its)
        if need_weight:
            dW = _check.rows(NAME, "dY", dY).t() @ _check.rows(NAME, "x", x)
        if need_bias:
            db = _check.rows(NAME, "dY", dY).sum(0)
        dA = _segments.needed(dA, needs[8 : 8 + n])
        dB = _segments.needed(dB, needs[8 + n : 8 + 2 * n])
        return dX if need_x else None, dW, db, *(None,) * 5, *dA, *dB, *(None,) * ctx.count


def _any(needs, n):
    """Whether some A and whether some B needs its gradient."""
    return any(needs[8 : 8 + n]), any(needs[8 + n : 8 + 2 * n])


def multi_lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor | Frozen,
    lora_A: Sequence[torch.Tensor] | torch.Tensor,
    lora_B: Sequence[torch.Tensor] | torch.Tensor,
    adapter_index: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    scalings: float | Sequence[float],
    dropout_ps: float | Sequence[float] = 0.0,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """y_m = W x_m + b + scaling_a * B_a A_a drop_a(x_m) with a = adapter_index[m], differentiable in all but the index.

    LoRA (Hu et al., arXiv:2106.09685) with an adapter for each row. The frozen product of all rows is one; an adapter
    meets its own rows alone, so that neither its rows' results nor its gradients depend on who else is in the batch,
    apart from the rounding of the frozen product, which may change with the number of rows.

    Args:
        x: [..., K], float32, bfloat16, float16 or float64, any strides.
        weight: [N, K], x's dtype, any strides; need not require grad. Or a `Frozen`.
        lora_A, lora_B: n tensors [r_a, K] and n tensors [N, r_a], or one [n, r, K] and one [n, N, r]; x's dtype, or
            float32 over a bfloat16 or float16 x, all of lora_A one dtype and all of lora_B.
        adapter_index: int64, one for each row of x's first dimension or for each of its rows [M, K] flattened; a number
            of 0 .. n - 1, or -1 for the frozen layer alone.
        bias: [N] in x's dtype, or None.
        scalings, dropout_ps: one number for all adapters, or one for each. Each adapter draws a mask of its own; one
            with rate 0 draws none.
        training: dropout applies only if true.
        generator: a torch.Generator to draw the masks' seeds from instead of torch's own.

    Returns:
        y [..., N] in x's dtype. Under autocast x, weight, bias and adapters are cast as in `lora_linear`. An adapter
        without rows has gradients of zero.

    Raises:
        ValueError: a shape, a device, a rank, a rate, a number of elements or a value of adapter_index does not fit;
            the message names it. On a GPU the index's values are not read.
        TypeError: an argument is of another type, or a dtype is not accepted.
        RuntimeError: a kernel forced by `using` cannot run these arguments.
    """
    _check.tensors(NAME, ("bias",), x=x, weight=weight, bias=bias)
    if type(weight) not in PLAIN:
        weight = operand(weight)
    lora_A, lora_B = _listed("lora_A", lora_A), _listed("lora_B", lora_B)
    n = len(lora_A)
    if len(lora_B) != n:
        raise ValueError(f"{NAME}: lora_B has {len(lora_B)} elements for {n} adapters in lora_A; give one an adapter")
    scalings, ps = _numbers("scalings", scalings, n), _numbers("dropout_ps", dropout_ps, n)
    for p in dict.fromkeys(ps):
        _check.dropout_p(NAME, p)
    _check.generator(NAME, generator)
    index = _of_rows(x, adapter_index)
    if _check.autocasts(x.device):
        x, weight, bias = autocast_as_linear(x, weight, bias)
        lora_A, lora_B = autocast_lora(x.dtype, *lora_A), autocast_lora(x.dtype, *lora_B)
    if type(weight) not in PLAIN and is_stored(weight):
        _check.frozen(NAME, x, weight)
        _segments.check_adapters(NAME, "x", x, lora_A, lora_B, scalings, ps, *weight.shape)
    options = scalings, ps if training else (0.0,) * n, generator
    return multi_lora_linear_unchecked(x, weight, bias, lora_A, lora_B, index, *options)


def multi_lora_linear_unchecked(x, weight, bias, lora_A, lora_B, index, scalings, ps, generator=None, table=None):
    """multi_lora_linear without its checks, outside autocast, of an index [M]: for callers that have checked.

    table: None, or an AdapterTable of the same adapters, for calls that are not differentiated.
    """
    n = len(lora_A)
    seeds = philox.draw_seed(x.device, generator, n) if any(ps) else None
    if not takes_a_function():
        y = None if table is None else table.linear(x, weight, bias, index, seeds)
        if y is not None:
            return y
        its = list(lora_A), list(lora_B), index, list(scalings), list(ps), seeds
        return multi_lora_forward(x, weight, bias, *its)[0]
    weight, its = (weight, ()) if type(weight) in PLAIN else stored(weight)
    args = x, weight, bias, index, seeds, scalings, ps, n
    return apply_of(MultiLoRALinearFunction)(*args, *lora_A, *lora_B, *its)


def _listed(name, tensors):
    if isinstance(tensors, torch.Tensor):
        if tensors.dim() != 3:
            raise ValueError(
                f"{NAME}: {name} has shape {tuple(tensors.shape)}; give a list of matrices, or 3 dimensions"
            )
        return tensors.unbind()
    if not isinstance(tensors, Iterable):
        raise TypeError(f"{NAME}: {name} is a {type(tensors).__name__}; give a list of matrices, or one tensor")
    tensors = tuple(tensors)
    if not all(type(t) in PLAIN and t.layout is torch.strided and not t.is_nested for t in tensors):  # names take time
        _check.tensors(NAME, **{f"{name}[{a}]": t for a, t in enumerate(tensors)})
    return tensors


def _numbers(name, values, n):
    """One float for each of n adapters."""
    if isinstance(values, numbers.Real) and not isinstance(values, bool):
        return (float(values),) * n
    if isinstance(values, torch.Tensor) or isinstance(values, (str, bool)) or not isinstance(values, Sequence):
        raise TypeError(f"{NAME}: {name}={values!r}: give a number, or a list of one number an adapter")
    if len(values) != n:
        raise ValueError(
            f"{NAME}: {name} has {len(values)} elements for {n} adapters; give one number, or one an adapter"
        )
    if all(type(value) is float for value in values):
        return tuple(values)
    return tuple(_check.number(NAME, f"{name}[{a}]", value) for a, value in enumerate(values))


def _of_rows(x, index):
    """adapter_index for every row of x as [M, K]."""
    if not isinstance(index, torch.Tensor) or index.dtype != torch.int64:
        what = index.dtype if isinstance(index, torch.Tensor) else type(index).__name__
        raise TypeError(f"{NAME}: adapter_index is {what}; give a tensor of int64")
    if x.dim() < 1:
        raise ValueError(f"{NAME}: x must have at least 1 dimension, got shape {tuple(x.shape)}")
    M = _segments.rows_of(x)
    if index.shape == (M,):
        return index
    if index.shape == x.shape[:-1]:
        return index.reshape(M)
    if index.dim() == 1 and x.dim() > 1 and index.shape[0] == x.shape[0]:
        return index.unsqueeze(1).expand(-1, M // max(1, x.shape[0])).reshape(M)
    raise ValueError(
        f"{NAME}: adapter_index has shape {tuple(index.shape)} for x of shape {tuple(x.shape)}; give one number for "
        f"each of the {x.shape[0] if x.dim() > 1 else 1} rows of its first dimension, or for each of its {M} rows"
    )
