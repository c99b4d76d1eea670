"""pf.ia3_linear: gradients, saved tensors, autocast, checkpointing, compile, bad input."""

import contextlib
import functools
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.testing import available
from tests.autograd.halves import HALVES, assert_as_close_as_eager
from tests.autograd.saving import saved_and_ran
from tests.device import DEVICE

KERNELS = sorted(set(available(OPS["ia3_linear"])) & set(available(OPS["ia3_dx_dl"])))
BOTH = pytest.mark.parametrize("feedforward", [False, True], ids=["outputs", "feedforward"])
NAMES = ("x", "W", "l", "b")


def tensors(feedforward, dtype=torch.float32, adapter=None, x_shape=(4, 5, 24), N=17):
    """x, weight, ia3_l, bias."""
    K = x_shape[-1]
    shapes = [(x_shape, dtype), ((N, K), dtype), ((K if feedforward else N,), adapter), ((N,), dtype)]
    return [torch.randn(shape).to(d or dtype).requires_grad_() for shape, d in shapes]


def eager(x, weight, ia3_l, bias, feedforward):
    """IA3 as PEFT computes it."""
    if feedforward:
        return F.linear((x * ia3_l).to(x.dtype), weight, bias)
    return (F.linear(x, weight, bias) * ia3_l).to(x.dtype)


@BOTH
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("x_shape", [(24,), (7, 24), (4, 5, 24), (0, 24), (2, 0, 24)], ids=str)
def test_values_and_every_gradient(kernel, x_shape, feedforward):
    args = tensors(feedforward, x_shape=x_shape)
    expected = eager(*args, feedforward)
    with pf.using(kernel):
        actual = pf.ia3_linear(*args, feedforward=feedforward)
        grad = torch.randn_like(actual)
        got = torch.autograd.grad(actual, args, grad)
    torch.testing.assert_close(actual, expected)
    want = torch.autograd.grad(expected, args, grad)
    for g, w, t in zip(got, want, args, strict=True):
        assert g.dtype == t.dtype and (args[0].numel() == 0 or w.abs().max() > 0)
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)


@BOTH
@pytest.mark.parametrize("kernel", ["blas", "reference"])
def test_gradcheck(kernel, feedforward):
    def function(*args):
        return pf.ia3_linear(*args, feedforward=feedforward)

    args = tensors(feedforward, torch.float64, x_shape=(3, 2, 6), N=5)
    with pf.using(kernel):
        assert torch.autograd.gradcheck(function, args)


@BOTH
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype,adapter", HALVES)
def test_half_precision(kernel, dtype, adapter, feedforward):
    with pf.using(kernel):
        assert_as_close_as_eager(
            functools.partial(pf.ia3_linear, feedforward=feedforward),
            functools.partial(eager, feedforward=feedforward),
            tensors(feedforward, dtype, adapter),
        )


@BOTH
@pytest.mark.parametrize("needed", [c for n in range(1, 5) for c in combinations(NAMES, n)], ids="".join)
def test_any_set_of_inputs_may_need_gradients(needed, feedforward):
    args = tensors(feedforward)
    for name, t in zip(NAMES, args, strict=True):
        t.requires_grad_(name in needed)
    wanted = [t for t in args if t.requires_grad]
    y = pf.ia3_linear(*args, feedforward=feedforward)
    y.square().sum().backward()
    got = [t.grad for t in args]
    expected = torch.autograd.grad(eager(*args, feedforward).square().sum(), wanted)
    assert [g is not None for g in got] == [name in needed for name in NAMES]
    torch.testing.assert_close([g for g in got if g is not None], list(expected), rtol=1e-4, atol=1e-4)


def saved(frozen, feedforward, grad=True):
    """(tensors saved for backward, by name, or by shape if not an input; ops that ran), with these inputs frozen."""
    args = dict(zip(NAMES, tensors(feedforward), strict=True))
    for name in frozen:
        args[name].requires_grad_(False)
    kept, ran = saved_and_ran(lambda: pf.ia3_linear(*args.values(), feedforward=feedforward), grad)
    names = {t.data_ptr(): name for name, t in args.items()}
    return sorted(names.get(t.data_ptr(), f"{tuple(t.shape)}") for t in kept), ran


def test_z_or_x_is_saved_only_if_l_needs_its_gradient():
    z, both = "(20, 17)", ["ia3_linear", "ia3_dx_dl"]
    assert saved("Wb", False) == ([z, "W", "l"], both)
    assert saved("Wb", True) == (["W", "l", "x"], both)
    assert saved("Wbx", False) == ([z, "l"], both)  # a first layer: dl does not need the weight
    assert saved("Wbx", True) == (["W", "l", "x"], both)
    assert saved("Wbl", False) == saved("Wbl", True) == (["W", "l"], both)
    assert saved("Wxl", False) == (["l"], ["ia3_linear"])  # the bias alone
    assert saved("Wxl", True) == ([], ["ia3_linear"])
    assert saved("", False, grad=False) == ([], ["ia3_linear"])


@BOTH
def test_activation_checkpointing(feedforward):
    args = tensors(feedforward)
    y = checkpoint(lambda x: pf.ia3_linear(x, *args[1:], feedforward=feedforward), args[0], use_reentrant=False)
    got = torch.autograd.grad(y.square().sum(), args)
    direct = pf.ia3_linear(*args, feedforward=feedforward)
    assert all(map(torch.equal, got, torch.autograd.grad(direct.square().sum(), args)))


@BOTH
def test_autocast_is_that_of_linear(feedforward):
    args = tensors(feedforward)
    with torch.autocast(DEVICE, torch.bfloat16):
        y = pf.ia3_linear(*args, feedforward=feedforward)
    assert y.dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(y.float().sum(), args))
    x, W, ia3_l, b = args
    half = x.bfloat16(), W.bfloat16(), ia3_l, b.bfloat16()
    assert torch.equal(y, pf.ia3_linear(*half, feedforward=feedforward))
    with torch.autocast(DEVICE, torch.bfloat16):
        assert pf.ia3_linear(*(t.double() for t in args), feedforward=feedforward).dtype == torch.float64


@BOTH
@pytest.mark.parametrize("kernel", KERNELS)
def test_any_strides(kernel, feedforward):
    """A transposed x, a Conv1D's transposed weight, an expanded l, an expanded gradient."""
    x = torch.randn(24, 5, 4).permute(2, 1, 0).requires_grad_()
    W, ia3_l = torch.randn(24, 17).t(), torch.randn(1).requires_grad_()
    expanded = ia3_l.expand(24 if feedforward else 17)
    with pf.using(kernel):
        y = pf.ia3_linear(x, W, expanded, feedforward=feedforward)
        got = torch.autograd.grad(y.sum(), (x, ia3_l))
    expected = F.linear(x, W) * ia3_l
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(got, torch.autograd.grad(expected.sum(), (x, ia3_l)), rtol=1e-4, atol=1e-4)


@BOTH
@pytest.mark.parametrize("kernel", [None, *(k for k in KERNELS if k in ("triton", "cuda"))])
def test_compiles_in_one_graph(kernel, feedforward):
    x, W, ia3_l, b = args = tensors(feedforward)
    W.requires_grad_(False)
    torch.compiler.reset()

    def function(x):
        return pf.ia3_linear(x, W, ia3_l, b, feedforward=feedforward) * 2

    results, ran = [], []
    for f in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        with pf.recording() as record, pf.using(kernel) if kernel else contextlib.nullcontext():
            y = f(x)
            results.append((y, *torch.autograd.grad(y.square().sum(), (args[0], ia3_l, b))))
        ran.append(record)
    assert ran[0] == ran[1] and (kernel is None or {k for _, k in ran[0]} == {kernel})
    for a, c in zip(*results, strict=True):
        torch.testing.assert_close(a, c)


def test_a_second_derivative_is_refused():
    args = tensors(False)
    (g,) = torch.autograd.grad(pf.ia3_linear(*args).square().sum(), args[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


@pytest.mark.parametrize(
    "change,error,words",
    [
        (dict(x=torch.ones(())), ValueError, r"x \[..., K\] and weight \[N, K\] do not fit: x \(\)"),
        (dict(weight=torch.ones(24)), ValueError, r"weight \(24,\)"),
        (
            dict(x=torch.ones(2, 25)),
            ValueError,
            r"x has shape \(2, 25\), expected \(.., 24\): weight of shape \(17, 24\)",
        ),
        (dict(feedforward=True), ValueError, r"ia3_l has shape \(17,\), expected \(24,\): \[K\] with feedforward"),
        (dict(bias=torch.ones(1)), ValueError, "bias has shape"),
        (dict(weight=torch.ones(17, 24, dtype=torch.float16)), TypeError, "weight is torch.float16 but x is"),
        (dict(ia3_l=torch.ones(17, dtype=torch.float64)), TypeError, "ia3_l is torch.float64 over a torch.float32 x"),
    ],
)
def test_bad_input(change, error, words):
    x, W, ia3_l, b = tensors(False)
    with pytest.raises(error, match=words):
        pf.ia3_linear(**dict(x=x, weight=W, ia3_l=ia3_l, bias=b) | change)


@BOTH
@pytest.mark.parametrize("K,N", [(0, 6), (6, 0)])
def test_empty_features(K, N, feedforward):
    args = tensors(feedforward, x_shape=(2, 5, K), N=N)
    expected = eager(*args, feedforward)
    y = pf.ia3_linear(*args, feedforward=feedforward)
    torch.testing.assert_close(y, expected)
    got, want = (torch.autograd.grad(out.sum(), args) for out in (y, expected))
    torch.testing.assert_close(got, want)
