"""Every op on every kernel that this machine has: values, shapes and layouts, registration, and tests that can fail."""

import dataclasses
from itertools import product

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.ops import philox
from tests.device import DEVICE
from tests.ops.checks import Case, assert_agrees, available, sample

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
KERNELS = [(name, kernel) for name, op in OPS.items() for kernel in available(op)]
SIZES = [(1, 1, 1, 1), (3, 17, 63, 2), (65, 129, 33, 7), (17, 64, 65, 16), (130, 40, 24, 33), (33, 72, 80, 64)]
CASES = [
    *(Case(*size, p=p) for size, p in product(SIZES, (0.0, 0.3))),
    *(Case(19, 83, 45, 5, p, dtype, adapter) for p, dtype, adapter in product((0.0, 0.3), (BF16, F16), (None, F32))),
    *(Case(21, 50, 37, 9, p, dtype, layout="strided") for p, dtype in product((0.0, 0.3), (F32, BF16))),
    *(Case(*size, p=0.3) for size in [(0, 8, 9, 2), (2, 100, 3, 128), (9, 520, 512, 8), (300, 16, 16, 257)]),
    *(Case(M, 70, 21, 5, 0.0, d, a) for M, d, a in product((1, 3, 8), (BF16, F16), (None, F32))),  # of few rows
    Case(7, 33, 20, 4, 0.5, bias=False),
    Case(7, 33, 20, 4, 0.999, F32),
    Case(7, 33, 20, 4, 1e-7, F32),
]
TWO = Case(33, 70, 41, 6, 0.4)


@pytest.mark.parametrize("op,kernel", KERNELS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(op, kernel, case, poisoned):
    assert_agrees(op, kernel, case)


@pytest.mark.parametrize("op,kernel", KERNELS)
def test_opcheck(op, kernel):
    with pf.using(kernel):
        for case in (TWO, Case(p=0.0), Case(dtype=BF16, adapter=F32, p=0.2)):
            torch.library.opcheck(getattr(torch.ops.pypeft_fast, op).default, sample(op, case))


@pytest.mark.parametrize("op,kernel", KERNELS)
def test_a_tensor_on_another_device_is_an_error_that_names_both(op, kernel):
    args = sample(op, TWO)
    here = args[0].device
    words = rf"\w+: \w+ is on (meta but \w+ is on {here}|{here} but \w+ is on meta); move one of them"
    for i, moved in enumerate(args[1:], 1):
        if isinstance(moved, torch.Tensor):
            apart = (*args[:i], moved.to("meta"), *args[i + 1 :])
            with pf.using(kernel), pytest.raises(ValueError, match=words):
                OPS[op](*apart)
            with pytest.raises(ValueError, match=words):  # the same without PyTorch's dispatch on the other device
                OPS[op].check_arguments(*apart)


@pytest.mark.parametrize("op", OPS)
def test_float64_is_exact_on_the_reference_and_refused_by_compiled_kernels(op):
    args = sample(op, Case(dtype=torch.float64, p=0.25))
    ran = OPS[op].choose(*args).name
    assert ran == "blas"
    for kernel in set(available(OPS[op])) - {"blas", "reference"}:
        with pf.using(kernel), pytest.raises(RuntimeError, match="float64 runs on the kernels blas and reference"):
            OPS[op](*args)


@pytest.mark.parametrize("op,kernel", KERNELS)
def test_autocast_changes_nothing_inside_an_op(op, kernel):
    assert_agrees(op, kernel, TWO, within=torch.autocast(DEVICE, torch.bfloat16))


@pytest.mark.parametrize("op,kernel", KERNELS)
def test_is_deterministic_at_any_number_of_threads(op, kernel):
    args = sample(op, Case(257, 130, 140, 16, 0.3))
    threads = torch.get_num_threads()
    results = []
    with pf.using(kernel):
        for n in (1, 2, 2):
            torch.set_num_threads(n)
            results.append(OPS[op](*args))
    torch.set_num_threads(threads)
    torch.testing.assert_close(results[1], results[2], rtol=0, atol=0)
    torch.testing.assert_close(results[0], results[1])


# (op, the argument whose rows are the result's)
ROWWISE = [("lora_linear", 0), ("lora_linear", 3), ("lora_dx", 0), ("lora_dx", 2), ("ia3_linear", 0), ("ia3_dx_dl", 0)]


@pytest.mark.parametrize("op,index,kernel", [(o, i, k) for o, i in ROWWISE for k in available(OPS[o])])
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_nan_stays_in_its_row_where_the_inner_axis_is_odd(op, index, kernel, dtype):
    """bfloat16 is multiplied in pairs: behind a row of odd length lies the next row's first element."""
    args = sample(op, Case(256, 33, 49, 3, 0.3 if op == "lora_dx" else 0.0, dtype))
    args[index][5, 0] = float("nan")
    with pf.using(kernel):
        outputs = OPS[op](*args)
    y = outputs[0] if isinstance(outputs, tuple) else outputs
    assert y.isnan().any(1).nonzero().flatten().tolist() == [5]


# A test that cannot fail proves nothing: each kernel is spoiled in every way that a careless bound would let pass.
def _zeros(function, *args):
    out = function(*args)
    return tuple(map(torch.zeros_like, out)) if isinstance(out, tuple) else torch.zeros_like(out)


def _without(index):
    """The kernel on arguments of which one is zero: a forgotten term."""
    return lambda function, *args: function(*args[:index], torch.zeros_like(args[index]), *args[index + 1 :])


def _unscaled(index):
    """The kernel on arguments of which one, a factor, is 1."""
    return lambda function, *args: function(*args[:index], torch.ones_like(args[index]), *args[index + 1 :])


def _without_mask(function, *args):
    """The kernel with the dropout left out, mask and scale."""
    *head, p_or_mask, p = args[:-1] if isinstance(args[-1], torch.dtype) else args
    if isinstance(p_or_mask, float):  # lora_shrink(x, A, p, seed)
        return function(*head, 0.0, None)[0], function(*args)[1]
    return function(*head, p_or_mask, 0.0, *args[len(head) + 2 :])


def _without_output(index):
    """The kernel with one of its outputs zero."""
    return lambda function, *args: tuple(t * (i != index) for i, t in enumerate(function(*args)))


def _without_scale(function, *args):
    """The kernel without the factor 1/(1-p) on what dropout keeps."""
    p = next(a for a in args if isinstance(a, float))
    if len(args) == 6:  # lora_dx: only the low-rank term is scaled
        zero = function(*args[:2], torch.zeros_like(args[2]), *args[3:])
        return zero + (function(*args) - zero) / philox.scale(p)
    out = function(*args)
    return (out[0] / philox.scale(p), out[1]) if isinstance(out, tuple) else out / philox.scale(p)


SPOILED = {
    "lora_forward": {
        "zero y": _without_output(0),
        "zero s": _without_output(1),
        "no base": _without(1),
        "no bias": _without(2),
        "no low rank": _without(4),
        "no dropout": lambda f, *a: (f(*a[:6], 0.0, None)[0], *f(*a)[1:]),
    },
    "lora_backward": {
        "zero dX": _without_output(0),
        "zero dA": _without_output(1),
        "zero dB": _without_output(2),
        "no base": _without(2),
        "no low rank": _without(3),
        "no scaling": lambda f, *a: f(*a[:7], 1.0, *a[8:]),
        "no dropout": lambda f, *a: f(*a[:6], None, a[7], 0.0, *a[9:]),
    },
    "lora_shrink": {"zeros": _zeros, "no mask": _without_mask, "no scale": _without_scale},
    "lora_linear": {  # and more with a scale: test_lora_linear.py
        "zeros": _zeros,
        "no low rank": _without(3),
        "no bias": _without(2),
        "no base": _without(1),
        "no scaling": lambda f, *a: f(*a[:5], 1.0, *a[6:]),
    },
    "lora_ds_db": {
        "zero dS": lambda f, *a: (torch.zeros_like(f(*a)[0]), f(*a)[1]),
        "zero dB": lambda f, *a: (f(*a)[0], torch.zeros_like(f(*a)[1])),
        "no scaling": lambda f, dY, B, s, c, *need: f(dY, B, s, 1.0, *need),
    },
    "lora_dx": {
        "zeros": _zeros,
        "no low rank": _without(2),
        "no base": _without(1),
        "no mask": _without_mask,
        "no scale": _without_scale,
    },
    "lora_da": {"zeros": _zeros, "no mask": _without_mask, "no scale": _without_scale},
    "ia3_linear": {
        "zeros": _zeros,
        "no scaling": _unscaled(3),
        "no bias": _without(2),
        "no base": _without(1),
        "z is y": lambda f, *a: (f(*a)[0], f(*a)[0][: len(f(*a)[1])]),
    },
    "ia3_dx_dl": {
        "zero dX": lambda f, *a: (torch.zeros_like(f(*a)[0]), f(*a)[1]),
        "zero dl": lambda f, *a: (f(*a)[0], torch.zeros_like(f(*a)[1])),
        "no scaling": _unscaled(2),
        "a row lost in dl": lambda f, *a: (f(*a)[0], f(a[0][1:], *a[1:3], a[3][1:], *a[4:])[1]),
    },
    "dora_norm": {
        "zeros": _zeros,
        "no base": _without(0),
        "no low rank": _without(1),
        "no scaling": lambda f, W, A, B, scaling: f(W, A, B, 1.0),
    },
    "swiglu": {
        "zeros": _zeros,
        "no up": _unscaled(1),
        "no sigmoid": lambda f, gate, up: gate * up,
        "operands exchanged": lambda f, gate, up: f(up, gate),
    },
    "swiglu_backward": {
        "zero dgate": _without_output(0),
        "zero dup": _without_output(1),
        "zero h": _without_output(2),
        "no dh": _unscaled(0),
        "no second term": lambda f, dh, gate, up, need: (dh * up * torch.sigmoid(gate), *f(dh, gate, up, need)[1:]),
    },
}


@pytest.mark.parametrize("op,kernel,how", [(o, k, how) for o, k in KERNELS for how in SPOILED[o]])
def test_a_spoiled_kernel_fails(op, kernel, how, monkeypatch):
    assert_spoiling_fails(op, kernel, SPOILED[op][how], TWO, monkeypatch)


def assert_spoiling_fails(op, kernel, spoil, case, monkeypatch):
    assert_agrees(op, kernel, case)
    kernels = OPS[op].kernels
    at = next(i for i, k in enumerate(kernels) if k.name == kernel)
    original = kernels[at].function
    broken = dataclasses.replace(kernels[at], function=lambda *args: spoil(original, *args))
    monkeypatch.setattr(OPS[op], "kernels", [*kernels[:at], broken, *kernels[at + 1 :]])
    # The truth comes from the reference, so spoiling that one is judged by the float64 it was before.
    if kernel == "reference":
        truth = dataclasses.replace(kernels[at], function=original)
        monkeypatch.setattr(OPS[op], "kernels", [truth, broken])
        monkeypatch.setattr(OPS[op], "choose", lambda *args: broken)
    with pytest.raises(AssertionError, match="error|mask"):
        assert_agrees(op, kernel, case)


def test_every_op_has_mutations_and_a_reference():
    assert set(SPOILED) == set(OPS)
    assert all("reference" in available(op) for op in OPS.values())
