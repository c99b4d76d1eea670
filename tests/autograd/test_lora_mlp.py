"""pf.lora_gated_linear: values, gradients, saved tensors, and that it equals lora_linear of the product."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.ops import philox
from pypeft_fast.testing import available
from tests.autograd.halves import HALVES, assert_as_close_as_eager
from tests.autograd.test_lora import KERNELS as OF_LORA
from tests.autograd.test_lora import eager
from tests.device import DEVICE, runs_layers_whole

KERNELS = [k for k in OF_LORA if k in available(OPS["swiglu"])]
NAMES = ("gate", "up", "weight", "lora_A", "lora_B", "bias")


def tensors(dtype=torch.float32, adapter=None, shape=(4, 5, 24), N=17, r=3):
    adapter = adapter or dtype
    shapes = [(shape, dtype), (shape, dtype), ((N, shape[-1]), dtype), ((r, shape[-1]), adapter), ((N, r), adapter)]
    return [torch.randn(size).to(d).requires_grad_() for size, d in [*shapes, ((N,), dtype)]]


def unfused(gate, up, W, A, B, b, scaling, p, seed):
    return eager(F.silu(gate) * up, W, A, B, b, scaling, p, seed)


def seeded():
    return torch.Generator(DEVICE).manual_seed(5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(24,), (7, 24), (4, 5, 24), (0, 24), (2, 0, 24)], ids=str)
def test_values_and_every_gradient(kernel, p, shape):
    args = tensors(shape=shape)
    expected = unfused(*args, 0.7, p, philox.draw_seed(DEVICE, seeded()))
    with pf.using(kernel):
        actual = pf.lora_gated_linear(*args, scaling=0.7, dropout_p=p, generator=seeded())
        grad = torch.randn_like(actual)
        got = torch.autograd.grad(actual, args, grad)
    torch.testing.assert_close(actual, expected)
    want = torch.autograd.grad(expected, args, grad)
    for g, w, t in zip(got, want, args, strict=True):
        assert g.dtype == t.dtype and (w.numel() == 0 or t.numel() == 0 or 0 in shape or w.abs().max() > 0)
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", ["blas", "reference"])
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_gradcheck(kernel, p):
    def function(*args):
        return pf.lora_gated_linear(*args, scaling=1.3, dropout_p=p, generator=seeded())

    with pf.using(kernel):
        assert torch.autograd.gradcheck(function, tensors(torch.float64, shape=(3, 2, 6), N=5))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype,adapter", HALVES)
def test_half_precision(kernel, dtype, adapter):
    def function(*args):
        return pf.lora_gated_linear(*args, scaling=0.7, dropout_p=0.2, generator=seeded())

    seed = philox.draw_seed(DEVICE, seeded())
    with pf.using(kernel):
        assert_as_close_as_eager(function, lambda *args: unfused(*args, 0.7, 0.2, seed), tensors(dtype, adapter))


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_the_mask_and_the_generator_are_those_of_lora_linear(p):
    gate, up, *rest = tensors()
    h = F.silu(gate) * up
    options, outcomes = dict(scaling=0.7, dropout_p=p), []
    for function in (
        lambda: pf.lora_linear(h, *rest, **options),
        lambda: pf.lora_gated_linear(gate, up, *rest, **options),
    ):
        torch.manual_seed(3)
        y = function()
        outcomes.append((y, *torch.autograd.grad(y.square().sum(), (gate, up, *rest), retain_graph=True)))
        outcomes[-1] += (torch.get_rng_state(),)
    torch.testing.assert_close(*outcomes, rtol=1e-4, atol=1e-4)
    if p:
        other = pf.lora_gated_linear(gate, up, *rest, **options)
        assert not torch.allclose(other, outcomes[0][0], atol=1e-2)
        evaluated = pf.lora_gated_linear(gate, up, *rest, **options, training=False)
        torch.testing.assert_close(evaluated, unfused(gate, up, *rest, 0.7, 0.0, None))


def saved(frozen, p=0.1, grad=True):
    """The tensors saved for backward by name, or by shape and dtype, and the ops of the backward pass."""
    args = dict(zip(NAMES, tensors(), strict=True))
    for name in frozen.split():
        args[name].requires_grad_(False)
    kept = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
        torch.set_grad_enabled(grad),
        pf.recording() as ran,
    ):
        y = pf.lora_gated_linear(**args, dropout_p=p)
        forward = len(ran)
        if y.requires_grad:
            y.sum().backward()
    names = {args[n].data_ptr(): n for n in args}
    for name, tensor in args.items():
        assert (tensor.grad is not None) == (tensor.requires_grad and y.requires_grad), name
    layer = ["lora_forward"] if runs_layers_whole() else ["lora_shrink", "lora_linear"]
    assert [op for op, _ in ran[:forward]] == ["swiglu", *layer]
    return sorted(names.get(t.data_ptr(), f"{tuple(t.shape)} {t.dtype}") for t in kept), [op for op, _ in ran[forward:]]


def test_only_gate_up_s_and_the_packed_mask_are_saved():
    s, mask = "(20, 3) torch.float32", "(20, 3) torch.uint8"
    adapter = ["lora_A", "lora_B"]
    whole = ["lora_ds_db", "lora_dx", "swiglu_backward", "lora_da"]
    assert saved("weight bias") == ([s, mask, "gate", *adapter, "up", "weight"], whole)
    assert saved("weight bias", p=0.0) == ([s, "gate", *adapter, "up", "weight"], whole)
    assert saved("weight gate") == ([s, mask, "gate", *adapter, "up", "weight"], whole)
    assert saved("weight lora_A") == ([s, mask, "gate", *adapter, "up", "weight"], whole[:3])
    assert saved("weight gate up") == ([s, mask, "gate", "lora_B", "up"], ["lora_ds_db", "swiglu", "lora_da"])
    assert saved("weight gate up lora_A") == ([s, "lora_B"], ["lora_ds_db"])
    assert saved("gate up lora_A lora_B bias") == (["gate", "up"], ["swiglu"])
    assert saved("weight gate up lora_A lora_B") == ([], [])  # the bias alone
    assert saved("", grad=False) == ([], [])


def test_activation_checkpointing_draws_the_same_mask_again():
    gate, up, *rest = tensors()
    grads = []
    for run in (lambda f, *x: f(*x), lambda f, *x: checkpoint(f, *x, use_reentrant=False)):
        torch.manual_seed(4)
        y = run(lambda gate, up: pf.lora_gated_linear(gate, up, *rest, dropout_p=0.5), gate, up)
        grads.append(torch.autograd.grad(y.square().sum(), (gate, up, *rest[:3])))
    assert all(map(torch.equal, *grads))


def test_autocast_is_that_of_linear():
    args = tensors()
    with torch.autocast(DEVICE, torch.bfloat16):
        y = pf.lora_gated_linear(*args)
    grads = torch.autograd.grad(y.float().sum(), args)
    assert y.dtype == torch.bfloat16 and all(g.dtype == torch.float32 for g in grads)
    gate, up, W, A, B, b = args
    assert torch.equal(y, pf.lora_gated_linear(gate.bfloat16(), up.bfloat16(), W.bfloat16(), A, B, b.bfloat16()))


@pytest.mark.parametrize("kernel", KERNELS)
def test_any_strides(kernel):
    gate, up = torch.randn(24, 5, 4).permute(2, 1, 0).requires_grad_(), torch.randn(4, 24, 5).mT.requires_grad_()
    W, A, B = torch.randn(24, 17).t(), torch.randn(24, 3).t().requires_grad_(), torch.randn(3, 17).t().requires_grad_()
    leaves = gate, up, A, B
    with pf.using(kernel):
        y = pf.lora_gated_linear(gate, up, W, A, B)
        got = torch.autograd.grad(y.sum(), leaves)
    expected = unfused(gate, up, W, A, B, None, 1.0, 0.0, None)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got, torch.autograd.grad(expected.sum(), leaves), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_compiles_in_one_graph(p):
    gate, up, *rest = tensors()
    rest[0].requires_grad_(False)

    def function(gate, up):
        return pf.lora_gated_linear(gate, up, *rest, scaling=0.5, dropout_p=p) * 2

    results = []
    for f in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        y = f(gate, up)
        results.append((y, *torch.autograd.grad(y.square().sum(), (gate, up, *rest[1:]))))
    torch.testing.assert_close(*results)


def test_a_second_derivative_is_refused():
    args = tensors()
    (g,) = torch.autograd.grad(pf.lora_gated_linear(*args).square().sum(), args[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


@pytest.mark.parametrize(
    "change,error,words",
    [
        (dict(dropout_p=1.0), ValueError, r"lora_gated_linear: dropout p=1.0 must be in \[0, 1\)"),
        (dict(lora_A=torch.ones(4, 24)), ValueError, "do not fit: lora_A \\(4, 24\\), lora_B \\(17, 3\\)"),
        (dict(gate=torch.ones(())), ValueError, "gate must have at least 1 dimension"),
        (dict(up=torch.ones(20, 24)), ValueError, r"up has shape \(20, 24\), expected \(4, 5, 24\)"),
        (dict(up=torch.ones(4, 5, 24).half()), TypeError, "up is torch.float16 but gate is torch.float32"),
        (dict(weight=torch.ones(17, 25)), ValueError, r"expected \(.., 25\): weight of shape \(17, 25\)"),
        (dict(bias=torch.ones(1)), ValueError, "bias has shape"),
    ],
)
def test_bad_input(change, error, words):
    with pytest.raises(error, match=words):
        pf.lora_gated_linear(**dict(zip(NAMES, tensors(), strict=True)) | change)
