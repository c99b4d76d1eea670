"""pf.lora_linear: gradients, saved tensors, dropout generator, autocast, checkpointing, compile, bad input."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.ops import philox
from pypeft_fast.testing import available
from tests.autograd.halves import HALVES, assert_as_close_as_eager
from tests.autograd.saving import saved_and_ran
from tests.device import DEVICE

OPS_OF_LORA = ("lora_shrink", "lora_linear", "lora_ds_db", "lora_dx", "lora_da")
KERNELS = sorted(set.intersection(*(set(available(OPS[name])) for name in OPS_OF_LORA)))


def tensors(dtype=torch.float32, adapter=None, x_shape=(4, 5, 24), N=17, r=3):
    shapes = [
        (x_shape, dtype),
        ((N, x_shape[-1]), dtype),
        ((r, x_shape[-1]), adapter),
        ((N, r), adapter),
        ((N,), dtype),
    ]
    return [torch.randn(shape).to(d or dtype).requires_grad_() for shape, d in shapes]


def eager(x, weight, A, B, bias, scaling, p, seed):
    rows = x.reshape(-1, x.shape[-1])
    mask = philox.packed_mask(*rows.shape, p, seed) if p else None
    S = torch.promote_types(x.dtype, A.dtype)
    low = philox.dropped(rows.to(S), mask, p) @ A.t().to(S) @ B.t().to(S) * scaling
    return F.linear(x, weight, bias) + low.view(*x.shape[:-1], weight.shape[0]).to(x.dtype)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("x_shape", [(24,), (7, 24), (4, 5, 24), (0, 24), (2, 0, 24)], ids=str)
def test_values_and_every_gradient(kernel, p, x_shape):
    args = tensors(x_shape=x_shape)
    seed = philox.draw_seed(DEVICE, torch.Generator(DEVICE).manual_seed(5))
    expected = eager(*args, 0.7, p, seed)
    x, W, A, B, b = args
    with pf.using(kernel):
        generator = torch.Generator(DEVICE).manual_seed(5)
        actual = pf.lora_linear(x, W, A, B, b, scaling=0.7, dropout_p=p, generator=generator)
        grad = torch.randn_like(actual)
        got = torch.autograd.grad(actual, args, grad)
    torch.testing.assert_close(actual, expected)
    want = torch.autograd.grad(expected, args, grad)
    for g, w, t in zip(got, want, args, strict=True):
        assert g.dtype == t.dtype and (w.numel() == 0 or x.numel() == 0 or w.abs().max() > 0)
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", ["blas", "reference"])
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_gradcheck(kernel, p):
    def function(x, W, A, B, b):
        return pf.lora_linear(x, W, A, B, b, scaling=1.3, dropout_p=p, generator=torch.Generator(DEVICE).manual_seed(1))

    args = tensors(torch.float64, x_shape=(3, 2, 6), N=5)
    with pf.using(kernel):
        assert torch.autograd.gradcheck(function, args)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype,adapter", HALVES)
def test_half_precision(kernel, dtype, adapter):
    def function(*args):
        return pf.lora_linear(*args, scaling=0.7, dropout_p=0.2, generator=torch.Generator(DEVICE).manual_seed(5))

    seed = philox.draw_seed(DEVICE, torch.Generator(DEVICE).manual_seed(5))
    with pf.using(kernel):
        assert_as_close_as_eager(function, lambda *args: eager(*args, 0.7, 0.2, seed), tensors(dtype, adapter))


@pytest.fixture
def elsewhere(monkeypatch):
    """CPU tensors use the code of other devices, which calls the single ops instead of the composite op."""
    for op in ("lora_forward", "lora_backward"):
        monkeypatch.setattr(OPS[op], "_direct", {})
        monkeypatch.setattr(OPS[op], "_is_in_parts", lambda args: True)


@pytest.mark.cpu
def test_one_call_each_way_on_a_cpu():
    x, W, A, B, b = tensors()
    with pf.recording() as ran:
        pf.lora_linear(x, W, A, B, b, dropout_p=0.1).sum().backward()
    assert [op for op, _ in ran] == ["lora_forward", "lora_backward"]


@pytest.mark.cpu
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("x_shape", [(24,), (4, 5, 24), (2, 0, 24)], ids=str)
def test_composite_ops_and_single_ops_give_the_same_bits(p, x_shape, request):
    args = tensors(x_shape=x_shape)
    x, W, A, B, b = args

    def step():
        y = pf.lora_linear(x, W, A, B, b, scaling=0.7, dropout_p=p, generator=torch.Generator(DEVICE).manual_seed(5))
        return y, *torch.autograd.grad(y, args, torch.ones_like(y))

    direct = step()
    with pf.recording() as ran:
        through_python = step()
    assert [op for op, _ in ran] == ["lora_forward", "lora_backward"]
    request.getfixturevalue("elsewhere")
    with pf.recording() as ran:
        one_by_one = step()
    assert len(ran) == 5
    for a, b, c in zip(direct, through_python, one_by_one, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_two_ops_forward_and_three_backward(elsewhere):
    x, W, A, B, b = tensors()
    W.requires_grad_(False)
    with pf.recording() as ran:
        y = pf.lora_linear(x, W, A, B, b, dropout_p=0.1)
        assert [op for op, _ in ran] == ["lora_shrink", "lora_linear"]
        y.sum().backward()
    assert [op for op, _ in ran[2:]] == ["lora_ds_db", "lora_dx", "lora_da"]


def saved(frozen, p=0.1, grad=True):
    """The tensors saved for backward, as (shape, dtype), with the named inputs frozen."""
    args = dict(zip("xWABb", tensors(), strict=True))
    for name in frozen:
        args[name].requires_grad_(False)
    kept, ran = saved_and_ran(lambda: pf.lora_linear(*(args[n] for n in "xWABb"), dropout_p=p), grad)
    names = {args[n].data_ptr(): n for n in args}
    return sorted(names.get(t.data_ptr(), f"{tuple(t.shape)} {t.dtype}") for t in kept), ran[2:]


def test_only_x_itself_s_and_the_packed_mask_are_saved():
    s, mask = "(20, 3) torch.float32", "(20, 3) torch.uint8"
    assert saved("W")[0] == [s, mask, "A", "B", "W", "x"]
    assert saved("Wx")[0] == [s, mask, "B", "x"]
    assert saved("WxAB")[0] == []


def test_other_devices_save_only_what_is_needed_and_run_only_needed_ops(elsewhere):
    s, mask = "(20, 3) torch.float32", "(20, 3) torch.uint8"
    assert saved("W") == ([s, mask, "A", "B", "W", "x"], ["lora_ds_db", "lora_dx", "lora_da"])
    assert saved("W", p=0.0) == ([s, "A", "B", "W", "x"], ["lora_ds_db", "lora_dx", "lora_da"])
    assert saved("Wx") == ([s, mask, "B", "x"], ["lora_ds_db", "lora_da"])  # a first layer: no dX
    assert saved("WA") == ([s, mask, "A", "B", "W"], ["lora_ds_db", "lora_dx"])  # a frozen A: no dA, no x
    assert saved("WxA") == ([s, "B"], ["lora_ds_db"])
    assert saved("WxAB") == ([], [])  # the bias alone
    assert saved("", grad=False) == ([], [])


def test_dropout_follows_the_generator_and_is_off_in_eval():
    x, W, A, B, b = tensors()
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(pf.lora_linear(x, W, A, B, b, dropout_p=0.5))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert not torch.equal(pf.lora_linear(x, W, A, B, dropout_p=0.5), pf.lora_linear(x, W, A, B, dropout_p=0.5))
    torch.manual_seed(3)
    evaluated, after = pf.lora_linear(x, W, A, B, b, dropout_p=0.5, training=False), torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(4)), "eval mode drew random numbers"
    torch.testing.assert_close(evaluated, eager(x, W, A, B, b, 1.0, 0.0, None))


def test_activation_checkpointing_draws_the_same_mask_again():
    x, W, A, B, b = tensors()
    grads = []
    for run in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=False)):
        torch.manual_seed(4)
        y = run(lambda x: pf.lora_linear(x, W, A, B, b, dropout_p=0.5), x)
        grads.append(torch.autograd.grad(y.square().sum(), (x, A, B)))
    for a, c in zip(*grads, strict=True):
        assert torch.equal(a, c)


def test_autocast_is_that_of_linear():
    x, W, A, B, b = tensors()
    with torch.autocast(DEVICE, torch.bfloat16):
        y = pf.lora_linear(x, W, A, B, b)
        assert y.dtype == F.linear(x, W, b).dtype == torch.bfloat16
    grads = torch.autograd.grad(y.float().sum(), (x, W, A, B, b))
    assert all(g.dtype == torch.float32 for g in grads)
    half = [t.bfloat16() for t in (x, W)] + [A, B] + [b.bfloat16()]
    assert torch.equal(y, pf.lora_linear(*half))
    with torch.autocast(DEVICE, torch.bfloat16):
        assert pf.lora_linear(*(t.double() for t in (x, W, A, B, b))).dtype == torch.float64


@pytest.mark.parametrize("kernel", KERNELS)
def test_any_strides(kernel):
    """A transposed x, a Conv1D's transposed weight, an expanded gradient."""
    x = torch.randn(24, 5, 4).permute(2, 1, 0).requires_grad_()
    W, A, B = torch.randn(24, 17).t(), torch.randn(24, 3).t().requires_grad_(), torch.randn(3, 17).t().requires_grad_()
    with pf.using(kernel):
        y = pf.lora_linear(x, W, A, B)
        got = torch.autograd.grad(y.sum(), (x, A, B))
    expected = F.linear(x, W) + x @ A.t() @ B.t()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(got, torch.autograd.grad(expected.sum(), (x, A, B)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("kernel", [None, *(k for k in KERNELS if k in ("triton", "cuda"))])
def test_compiles_in_one_graph(kernel, p):
    x, W, A, B, b = tensors()
    W.requires_grad_(False)
    torch.compiler.reset()

    def function(x):
        return pf.lora_linear(x, W, A, B, b, scaling=0.5, dropout_p=p) * 2

    results, ran = [], []
    for f in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        with pf.recording() as record, pf.using(kernel) if kernel else contextlib.nullcontext():
            y = f(x)
            results.append((y, *torch.autograd.grad(y.square().sum(), (x, A, B, b))))
        ran.append(record)
    assert ran[0] == ran[1] and (kernel is None or {k for _, k in ran[0]} == {kernel})
    for a, c in zip(*results, strict=True):
        torch.testing.assert_close(a, c)


def test_a_second_derivative_is_refused():
    x, W, A, B, b = tensors()
    (g,) = torch.autograd.grad(pf.lora_linear(x, W, A, B, b).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


@pytest.mark.parametrize(
    "change,error,words",
    [
        (dict(dropout_p=1.0), ValueError, r"dropout p=1.0 must be in \[0, 1\)"),
        (dict(dropout_p=-1), ValueError, "dropout p=-1"),
        (dict(lora_A=torch.ones(4, 24)), ValueError, "do not fit: x .* lora_A \\(4, 24\\), lora_B \\(17, 3\\)"),
        (dict(x=torch.ones(())), ValueError, "do not fit"),
        (dict(x=torch.ones(2, 25)), ValueError, r"x has shape \(2, 25\), expected \(.., 24\)"),
        (
            dict(lora_A=torch.ones(3, 25)),
            ValueError,
            r"expected \(3, 24\): \[r, K\] for weight|lora_A of shape \(3, 25\)",
        ),
        (dict(bias=torch.ones(1)), ValueError, "bias has shape"),
        (dict(weight=torch.ones(17, 24, dtype=torch.float16)), TypeError, "weight is torch.float16 but x is"),
    ],
)
def test_bad_input(change, error, words):
    x, W, A, B, b = tensors()
    with pytest.raises(error, match=words):
        pf.lora_linear(**dict(x=x, weight=W, lora_A=A, lora_B=B, bias=b) | change)


@pytest.mark.parametrize("M", [3, 40, 200])
@pytest.mark.parametrize("K,N", [(8, 0), (0, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_empty_features(M, K, N, dtype):
    args = tensors(dtype, x_shape=(M, K), N=N)
    y = pf.lora_linear(*args, scaling=0.7)
    assert torch.equal(y, args[4].expand(M, N))
    grads = torch.autograd.grad(y, args, torch.ones_like(y))
    assert [g.shape for g in grads] == [t.shape for t in args] and all(not g.any() for g in grads[:4])


@pytest.mark.cpu
def test_make_fx_records_the_op_lora_forward():
    from torch.fx.experimental.proxy_tensor import make_fx

    x, W, A, B, _ = (t.detach() for t in tensors())
    graph = make_fx(lambda x: pf.lora_linear(x, W, A, B))(x).graph
    assert "pypeft_fast.lora_forward.default" in [str(node.target) for node in graph.nodes]
