"""The bound on the error of a kernel, and the assertion that a kernel is within the bound.

The truth is the op's reference in float64 with the same mask. The error of a kernel may be at most twice the error of
eager PyTorch in the same dtypes, plus one ulp of the largest value.
"""

import contextlib
from collections.abc import Callable

import torch

from .._derivative import is_tensor_list
from .._op import OPS, Op, recording, using
from ..frozen.operand import Frozen, dense
from .case import Case
from .registry import EAGER, cut, sample


class OutOfBound(AssertionError):
    """An output differs from the truth by more than the bound allows."""


def available(op: Op) -> list[str]:
    """The kernels that can run on this machine, by choice or only if forced, on PyTorch's default device."""
    device = torch.get_default_device().type
    on_device = (k for k in op.kernels if k.devices is None or device in k.devices + k.interpreted)
    return [k.name for k in on_device if k.missing() is None]


def _arguments_in_float64(op_name, args):
    """args with floating-point tensors in float64. The tensors of a quantised weight keep the dtypes of its format."""
    if op_name == "dequantize":
        return [*args[:-1], torch.float64]
    return [[_in_float64(t) for t in value] if is_tensor_list(value) else _in_float64(value) for value in args]


def _in_float64(value):
    if isinstance(value, Frozen):
        return value.to(torch.float64)
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.double()
    return torch.float64 if isinstance(value, torch.dtype) else value


def _eager(op_name, args):
    """Eager PyTorch's result; a quantised weight is decoded first, to the dtype of the products."""
    return EAGER[op_name](*(dense(a) if isinstance(a, Frozen) else a for a in args))


def _tensors(value):
    if is_tensor_list(value):
        tensors = value
    else:
        tensors = value.tensors if isinstance(value, Frozen) else [value] if isinstance(value, torch.Tensor) else []
    return [t.contiguous().flatten() for t in tensors]


def _copies(args):
    return [[t.clone() for t in _tensors(value)] for value in args]


def _tuple(outputs):
    """All tensors of the outputs, lists flattened."""
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return tuple(t for out in outputs for t in (out if is_tensor_list(out) else (out,)))


def _eager_errors(op_name, reference, case):
    """Eager PyTorch's largest error in each output over several draws: in one draw a small output may be exact."""
    errors, smallest = [], max(1, min(case.M, case.r) * min(case.N, case.K))  # of y or a gradient of the adapter
    for draw in range(max(4, 64 // smallest)):
        args = sample(op_name, case, draw)
        pairs = zip(
            _tuple(_eager(op_name, args)), _tuple(reference(*_arguments_in_float64(op_name, args))), strict=True
        )
        errors.append([(own.double() - truth).abs().max() if truth.numel() else 0 for own, truth in pairs])
    return [max(column) for column in zip(*errors, strict=True)]


def _truncated_steps(case, output):
    """Further ulps for sums on tensor cores, which truncate, where eager PyTorch sums in float32, which rounds.

    Half an ulp for each accumulation step. This holds only on a GPU, for a product of a half-precision and a float32
    operand: the kernels compute it as three tf32 products, and PyTorch computes it in float32.
    """
    mixed = case.adapter == torch.float32 != case.dtype and output.dtype == torch.float32
    return max(case.M, case.K, case.N) / 8 / 2 if output.is_cuda and mixed else 0


def _run(op, kernel, args):
    """The outputs of a function, or of the op with the named kernel forced. AssertionError if another kernel ran."""
    if callable(kernel):
        return _tuple(kernel(*args))
    with using(kernel), recording() as ran:
        outputs = _tuple(op(*args))
    if ran != [(op.name, kernel)]:
        raise AssertionError(f"{op.name}: {ran} ran, expected the kernel {kernel} alone")
    return outputs


def _check_output(what, case, output, eager, truth, eager_error):
    for name, got, wanted in (("shape", output.shape, eager.shape), ("dtype", output.dtype, eager.dtype)):
        if got != wanted:
            raise AssertionError(f"{what} has {name} {got}, expected {wanted}")
    if not output.is_contiguous():
        raise AssertionError(f"{what} has strides {output.stride()}, expected a contiguous tensor")
    if not output.is_floating_point():
        if not torch.equal(output, truth):
            raise OutOfBound(f"{what}: the mask differs from the Philox stream")
    elif output.numel():
        error = (output.double() - truth).abs().max()
        ulp = torch.finfo(output.dtype).eps * truth.abs().max()
        if not error <= 2 * eager_error + ulp * (1 + _truncated_steps(case, output)):
            raise OutOfBound(f"{what}: error {error:.3g}, eager's own {eager_error:.3g}, one ulp {ulp:.3g}")


def assert_agrees(
    op_name: str, kernel: str | Callable, case: Case, within: contextlib.AbstractContextManager | None = None
) -> None:
    """Asserts that the kernel changes no input, that the outputs have the right shape and dtype, and that their error
    is within the bound.

    kernel: the name of one of the op's kernels, which is forced; or a function of the op's arguments. A kernel that
    does not take every call of its op gets the case cut to what it takes (`cut`).
    within: a context manager that is entered only around the kernel's call.
    Raises OutOfBound for a wrong value, AssertionError for any other fault of the outputs, RuntimeError if the named
    kernel cannot run, ValueError for an op without sample arguments.
    """
    case = case if callable(kernel) else cut(op_name, kernel, case)
    args = sample(op_name, case)
    op = OPS[op_name]
    before = _copies(args)
    reference = op.function("reference")
    truth = _tuple(reference(*_arguments_in_float64(op_name, args)))
    eager = _tuple(_eager(op_name, args))
    with within or contextlib.nullcontext():
        outputs = _run(op, kernel, args)
    for i, (held, copies) in enumerate(zip(map(_tensors, args), before, strict=True)):
        if any(not torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(held, copies, strict=True)):
            raise AssertionError(f"{op_name}: the kernel changed argument {i}, an input")
    if len(outputs) != len(truth):
        raise AssertionError(f"{op_name}: {len(outputs)} outputs, expected {len(truth)}")
    errors = _eager_errors(op_name, reference, case)
    for i, each in enumerate(zip(outputs, eager, truth, errors, strict=True)):
        _check_output(f"{op_name}, {case}: output {i}", case, *each)


def assert_spoiling_fails(op_name: str, kernel: str, spoil: Callable, case: Case) -> None:
    """Asserts that the named kernel agrees, and that with `spoil`, a mutant in SPOILED, it exceeds the bound."""
    assert_agrees(op_name, kernel, case)
    case = cut(op_name, kernel, case)
    function = OPS[op_name].function(kernel)
    try:
        assert_agrees(op_name, lambda *args: spoil(function, *args), case)
    except OutOfBound:
        return
    raise AssertionError(f"{op_name}: the spoiled kernel {kernel} keeps the bound in {case}")
