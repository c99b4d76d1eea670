"""The bound that every kernel must keep, and whether a kernel does.

Truth is the op's reference in float64 on the same mask. A kernel may be wrong by twice what eager PyTorch in the same
dtypes is wrong, plus one ulp of the largest value.
"""

import contextlib
from collections.abc import Callable

import torch

from .._derivative import is_tensor_list
from .._op import OPS, Op, recording, using
from ..frozen.operand import Frozen, dense
from .case import Case
from .registry import EAGER, sample


class OutOfBound(AssertionError):
    """An output differs from the truth by more than the bound allows."""


def available(op: Op) -> list[str]:
    """The kernels that this machine has and that run, at least when forced, on PyTorch's default device."""
    device = torch.get_default_device().type
    on_device = (k for k in op.kernels if k.devices is None or device in k.devices + k.interpreted)
    return [k.name for k in on_device if k.missing() is None]


def _all_wide(args):
    """args in float64. A list beside codes is their scales, which are of the format's own dtypes."""
    codes = isinstance(args[0], torch.Tensor) and args[0].element_size() == 1
    return [[_wide(t) for t in value] if is_tensor_list(value) and not codes else _wide(value) for value in args]


def _wide(value):
    if isinstance(value, Frozen):
        return value.to(torch.float64)
    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.element_size() > 1:  # not fp8's codes
        return value.double()
    return torch.float64 if isinstance(value, torch.dtype) else value


def _eager(op_name, args):
    """What PyTorch alone gives, of a quantised weight after it is decoded to the dtype of the products."""
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
    """Every tensor of the outputs, those of lists too."""
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return tuple(t for out in outputs for t in (out if is_tensor_list(out) else (out,)))


def _eager_errors(op_name, reference, case):
    """Eager's worst error in each output over several draws: a small output may be exact by luck in one."""
    errors, smallest = [], max(1, case.M * min(case.N, case.K))
    for draw in range(max(4, 64 // smallest)):
        args = sample(op_name, case, draw)
        pairs = zip(_tuple(_eager(op_name, args)), _tuple(reference(*_all_wide(args))), strict=True)
        errors.append([(own.double() - truth).abs().max() if truth.numel() else 0 for own, truth in pairs])
    return [max(column) for column in zip(*errors, strict=True)]


def _truncated_steps(case, output):
    """Half an ulp for each step of a sum on tensor cores, which truncate; beside PyTorch's float32, which rounds.

    On a GPU, where a half-precision operand meets a float32 one: three products in tf32 there, and none in PyTorch.
    """
    mixed = case.adapter == torch.float32 != case.dtype and output.dtype == torch.float32
    return max(case.M, case.K, case.N) / 8 / 2 if output.is_cuda and mixed else 0


def _run(op, kernel, args):
    """The outputs of a function, or of the op with the named kernel forced, which must be the kernel that ran."""
    if callable(kernel):
        return _tuple(kernel(*args))
    with using(kernel), recording() as ran:
        outputs = _tuple(op(*args))
    if ran != [(op.name, kernel)]:
        raise AssertionError(f"{op.name}: {ran} ran, expected the kernel {kernel} alone")
    return outputs


def _judge(what, case, output, eager, truth, eager_error):
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
    """The kernel changes no input, gives outputs of the right shape and dtype, and stays within the bound of the truth.

    kernel: the name of one of the op's kernels, which is forced; or a function of the op's arguments.
    within: a context manager to enter around the kernel's call alone.
    Raises OutOfBound for a wrong value, AssertionError for all else that is wrong with the outputs, RuntimeError if
    the named kernel cannot run, ValueError for an op without sample arguments.
    """
    args = sample(op_name, case)
    op = OPS[op_name]
    before = _copies(args)
    reference = op.function("reference")
    truth = _tuple(reference(*_all_wide(args)))
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
        _judge(f"{op_name}, {case}: output {i}", case, *each)


def assert_spoiling_fails(op_name: str, kernel: str, spoil: Callable, case: Case) -> None:
    """The named kernel agrees, and `spoil`, one of SPOILED, makes outputs of it that are out of the bound."""
    assert_agrees(op_name, kernel, case)
    function = OPS[op_name].function(kernel)
    try:
        assert_agrees(op_name, lambda *args: spoil(function, *args), case)
    except OutOfBound:
        return
    raise AssertionError(f"{op_name}: the spoiled kernel {kernel} keeps the bound in {case}")
