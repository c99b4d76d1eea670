"""pf.dora_linear compared with PEFT's layer and float64: values, gradients, saved tensors, and the norm."""

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.autograd import dora_norm as norms
from pypeft_fast.autograd.dora import DoRALinearFunction
from pypeft_fast.nn.merge import dora_weight
from pypeft_fast.ops import philox
from pypeft_fast.testing import available
from tests.autograd.saving import saved_and_ran
from tests.device import DEVICE

OPS_OF_DORA = ("lora_shrink", "lora_linear", "lora_ds_db", "lora_dx", "lora_da", "ia3_dx_dl")
KERNELS = sorted(set.intersection(*(set(available(OPS[name])) for name in OPS_OF_DORA)))
SCALING = 2.0


def tensors(dtype=torch.float32, adapter=None, x_shape=(4, 5, 24), N=17, r=4):
    """x, W, A, B, magnitude, bias. The magnitude differs from the lengths of the rows, so that errors in it show."""
    P = adapter or dtype
    x, W, A, B = (torch.randn(s) for s in (x_shape, (N, x_shape[-1]), (r, x_shape[-1]), (N, r)))
    magnitude = (W + SCALING * 0.3 * B @ A).norm(dim=1) * (0.5 + torch.rand(N))
    values = [x.to(dtype), W.to(dtype), A.to(P), (0.3 * B).to(P), magnitude.to(P), torch.randn(N).to(dtype)]
    return [t.requires_grad_() for t in values]


class Masked(nn.Module):
    """Dropout with a given mask, which replaces the dropout of PEFT."""

    def __init__(self, mask, p):
        super().__init__()
        self.mask, self.p = mask, p

    def forward(self, x):
        return philox.dropped(x.reshape(-1, x.shape[-1]), self.mask, self.p).view_as(x)


def peft_layer(W, A, B, magnitude, bias):
    linear = nn.Linear(W.shape[1], W.shape[0], bias is not None, dtype=W.dtype)
    config = peft.LoraConfig(r=A.shape[0], lora_alpha=SCALING * A.shape[0], target_modules=["0"], use_dora=True)
    layer = peft.get_peft_model(nn.Sequential(linear), config).base_model.model[0].to(A.dtype)
    layer.base_layer.to(W.dtype)
    parameters = [
        (layer.base_layer, W),
        (layer.lora_A["default"], A),
        (layer.lora_B["default"], B),
        (layer.lora_magnitude_vector["default"], magnitude),
    ]
    for module, value in parameters:
        module.weight = nn.Parameter(value.detach().clone())
    if bias is not None:
        layer.base_layer.bias = nn.Parameter(bias.detach().clone())
    leaves = [module.weight for module, _ in parameters] + ([] if bias is None else [layer.base_layer.bias])
    return layer, leaves


def peft_results(args, p, seed, dY):
    x = args[0].detach().clone().requires_grad_()
    layer, leaves = peft_layer(*args[1:])
    if p > 0:
        rows = x.reshape(-1, x.shape[-1])
        layer.lora_dropout["default"] = Masked(philox.packed_mask(*rows.shape, p, seed), p)
    y = layer(x)
    return [y, *torch.autograd.grad(y, [x, *leaves], dY.to(y.dtype))]


def our_results(args, p, dY, **options):
    generator = torch.Generator(DEVICE).manual_seed(5)
    y = pf.dora_linear(*args, scaling=SCALING, dropout_p=p, generator=generator, **options)
    return [y, *torch.autograd.grad(y, [t for t in args if t is not None], dY)]


def seed_of_ours():
    return philox.draw_seed(DEVICE, torch.Generator(DEVICE).manual_seed(5))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("x_shape", [(24,), (7, 24), (4, 5, 24)], ids=str)
def test_values_and_every_gradient_are_those_of_peft(kernel, p, bias, x_shape):
    args = tensors(x_shape=x_shape)
    args = args if bias else [*args[:-1], None]
    dY = torch.randn(*x_shape[:-1], 17)
    with pf.using(kernel), pf.recording() as ran:
        got = our_results(args, p, dY)
    assert {k for _, k in ran} == {kernel} and {o for o, _ in ran} - {"dora_norm"} == set(OPS_OF_DORA)
    if len(x_shape) == 1:  # PEFT views such an x as [1, K]
        want = [
            t.squeeze(0) if i < 2 else t
            for i, t in enumerate(peft_results([args[0][None], *args[1:]], p, seed_of_ours(), dY[None]))
        ]
    else:
        want = peft_results(args, p, seed_of_ours(), dY)
    for g, w in zip(got, want, strict=True):
        assert w.abs().max() > 0
        torch.testing.assert_close(g, w, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize(
    "dtype,adapter",
    [(torch.bfloat16, None), (torch.bfloat16, torch.float32), (torch.float16, torch.float32)],
)
def test_half_precision_is_within_twice_the_error_of_peft(dtype, adapter, p):
    errors, allowed = [], []
    for draw in range(3):
        torch.manual_seed(draw)
        args = tensors(dtype, adapter)
        dY = torch.randn(4, 5, 17).to(dtype)
        wide = [t.detach().double().requires_grad_() for t in args]
        truth = peft_results(wide, p, seed_of_ours(), dY.double())
        theirs, ours = peft_results(args, p, seed_of_ours(), dY), our_results(args, p, dY)
        assert [g.dtype for g in ours] == [dtype, *(t.dtype for t in args)]
        errors.append([(g.double() - t).abs().max() for g, t in zip(ours, truth, strict=True)])
        eps = torch.finfo(dtype).eps
        allowed.append(
            [2 * (g.double() - t).abs().max() + eps * t.abs().max() for g, t in zip(theirs, truth, strict=True)]
        )
    for error, bound in zip(zip(*errors, strict=True), zip(*allowed, strict=True), strict=True):
        assert max(error) <= max(bound)


@pytest.mark.parametrize("kernel", ["blas", "reference"])
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_gradcheck(kernel, p):
    """The norm is constant, as in the definition of the gradient in the paper."""
    x, W, A, B, magnitude, bias = tensors(torch.float64, x_shape=(3, 6), N=5, r=2)
    norm = norms.dora_norm(W, A, B, SCALING)
    seed = torch.tensor([7]) if p else None

    def function(x, W, b, A, B, magnitude):
        return DoRALinearFunction.apply(x, W, b, A, B, magnitude, norm, SCALING, p, seed)

    with pf.using(kernel):
        assert torch.autograd.gradcheck(function, (x, W, bias, A, B, magnitude))


@pytest.mark.parametrize("dtype,adapter", [(torch.float32, None), (torch.bfloat16, torch.float32)])
def test_the_norm_is_that_of_the_sum(dtype, adapter):
    _, W, A, B, _, _ = tensors(dtype, adapter)
    expected = (W.double() + SCALING * B.double() @ A.double()).norm(dim=1)
    torch.testing.assert_close(norms.dora_norm(W, A, B, SCALING).double(), expected, rtol=2e-6, atol=0)
    with torch.autocast(DEVICE, torch.bfloat16):  # of a Conv1D's transposed weight
        other = norms.dora_norm(W.t().contiguous().t(), A, B, SCALING)
    torch.testing.assert_close(other.double(), expected, rtol=2e-6, atol=0)


def test_the_sum_of_the_weights_is_never_formed():
    x, W, A, B, magnitude, bias = tensors(x_shape=(2, 600), N=500)
    W.requires_grad_(False)
    made = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made.extend(t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor))
            return out

    with Watch():
        pf.dora_linear(x, W, A, B, magnitude, bias, dropout_p=0.2).sum().backward()
    sizes = [t.numel() for t in made if t.untyped_storage().data_ptr() != W.untyped_storage().data_ptr()]
    assert len(sizes) > 10 and max(sizes) < W.numel() / 50


def saved(frozen, p=0.1):
    args = dict(zip(("x", "W", "A", "B", "m", "b"), tensors(), strict=True))
    for name in frozen:
        args[name].requires_grad_(False)
    kept, _ = saved_and_ran(lambda: pf.dora_linear(*args.values(), dropout_p=p))
    names = {t.data_ptr(): n for n, t in args.items()}
    return sorted(names.get(t.data_ptr(), f"{tuple(t.shape)} {t.dtype}".replace("torch.", "")) for t in kept)


def test_what_is_saved():
    s, mask, z, g = "(20, 4) float32", "(20, 3) uint8", "(20, 17) float32", "(17,) float32"
    assert saved("W") == sorted(["x", "W", "A", "B", s, mask, z, g, g])
    assert saved("W", p=0.0) == sorted(["x", "W", "A", "B", s, z, g, g])
    assert saved("WAm") == sorted(["W", "A", "B", s, mask, g])
    assert saved("xWABm") == [g]


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_float32_adapters_are_not_rounded_to_the_layer_s_dtype(dtype, p):
    """By default PEFT has float32 adapters over a half-precision layer, and computes the low-rank branch in float32."""
    args = tensors(dtype, torch.float32)
    dY = torch.randn(4, 5, 17).to(dtype)
    exact = our_results([t.detach().double().requires_grad_() for t in args], p, dY.double())
    ours = our_results(args, p, dY)
    for got, want in zip(ours[3:5], exact[3:5], strict=True):  # of lora_A and lora_B
        assert (got - want).norm() < 1e-5 * want.norm()


def test_checkpointing_draws_the_same_mask_again():
    x, W, A, B, magnitude, bias = tensors()
    W.requires_grad_(False)
    grads = []
    for run in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=False)):
        torch.manual_seed(4)
        y = run(lambda x: pf.dora_linear(x, W, A, B, magnitude, bias, dropout_p=0.5), x)
        grads.append(torch.autograd.grad(y.square().sum(), (x, A, B, magnitude)))
    assert all(map(torch.equal, *grads))


def test_autocast_is_that_of_linear():
    args = tensors()
    with torch.autocast(DEVICE, torch.bfloat16):
        y = pf.dora_linear(*args)
        assert y.dtype == F.linear(*args[:2]).dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(y.float().sum(), args))
    x, W, A, B, magnitude, b = args
    expected = pf.dora_linear(*args)
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05 * expected.abs().max().item())


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_compiles_in_one_graph(p):
    x, W, A, B, magnitude, b = tensors()
    W.requires_grad_(False)

    def function(x):
        return pf.dora_linear(x, W, A, B, magnitude, b, scaling=0.5, dropout_p=p) * 2

    results = []
    for f in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        y = f(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, A, B, magnitude, b))))
    for a, c in zip(*results, strict=True):
        torch.testing.assert_close(a, c)


@pytest.mark.parametrize(
    "change,error,words",
    [
        (dict(dropout_p=1.0), ValueError, r"dora_linear: dropout p=1.0 must be in \[0, 1\)"),
        (dict(lora_A=torch.ones(4, 25)), ValueError, r"lora_A has shape \(4, 25\), expected \(4, 24\)"),
        (dict(lora_A=torch.ones(0, 24)), ValueError, "the rank must be at least 1"),
        (dict(x=torch.ones(())), ValueError, r"x has shape \(\), expected \(.., 24\)"),
        (
            dict(x=torch.ones(2, 25)),
            ValueError,
            r"x has shape \(2, 25\), expected \(.., 24\): weight of shape \(17, 24\)",
        ),
        (dict(lora_B=torch.ones(17, 3)), ValueError, r"lora_B has shape \(17, 3\), expected \(17, 4\)"),
        (dict(magnitude=torch.ones(17, 1)), ValueError, r"magnitude has shape \(17, 1\), expected \(17,\)"),
        (dict(magnitude=torch.ones(17).half()), TypeError, "magnitude is torch.float16 over a torch.float32 x"),
        (dict(weight=torch.ones(17, 24).half()), TypeError, "weight is torch.float16 but x is"),
        (dict(bias=torch.ones(1)), ValueError, "bias has shape"),
        (dict(weight=torch.ones(17, 24).char()), TypeError, "dora_linear: weight has dtype torch.int8; accepted are"),
    ],
)
def test_bad_input(change, error, words):
    names = ("x", "weight", "lora_A", "lora_B", "magnitude", "bias")
    with pytest.raises(error, match=words):
        pf.dora_linear(**dict(zip(names, tensors(), strict=True)) | change)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_no_outputs(p):
    args = tensors(x_shape=(2, 5, 24), N=0)
    y = pf.dora_linear(*args, dropout_p=p)
    grads = torch.autograd.grad(y.sum(), args)
    assert y.shape == (2, 5, 0) and [g.shape for g in grads] == [t.shape for t in args]
    assert not any(g.any() for g in grads)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("x_shape", [(0, 24), (2, 0, 24)], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_no_rows(kernel, x_shape, p):
    """Sums over no rows are 0, also for B, even if a magnitude is infinite or NaN."""
    args = tensors(x_shape=x_shape)
    with torch.no_grad():
        args[4][2], args[4][3] = float("inf"), float("nan")
    with pf.using(kernel):
        y = pf.dora_linear(*args, dropout_p=p)
        grads = torch.autograd.grad(y.sum(), args)
    assert y.shape == (*x_shape[:-1], 17) and [g.shape for g in grads] == [t.shape for t in args]
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_zeros_is_zero_plus_its_update_and_learns(dtype, p):
    """Real checkpoints have such rows. In PEFT magnitude 0 over length 0 is NaN, forward and backward."""
    x, W, A, B, magnitude, bias = (t.detach().clone() for t in tensors(dtype, torch.float32))
    W[3] = 0
    B[3] = 0
    magnitude[3] = 0
    leaves = [t.requires_grad_() for t in (x, A, B, magnitude)]
    y = pf.dora_linear(x, W, A, B, magnitude, bias, scaling=2.0, dropout_p=p)
    assert y.isfinite().all() and torch.equal(y[..., 3], bias[3].expand_as(y[..., 3]))
    y.float().square().sum().backward()
    assert all(t.grad.isfinite().all() for t in leaves) and B.grad[3].any() and not magnitude.grad[3]
    with torch.no_grad():
        B[3] = B.grad[3] / B.grad[3].norm()  # after a step the row has a direction, and its length gets a gradient
    magnitude.grad = None
    pf.dora_linear(x, W, A, B, magnitude, bias, scaling=2.0, dropout_p=p).float().square().sum().backward()
    assert magnitude.grad.isfinite().all() and magnitude.grad[3] != 0
    merged = dora_weight(W, A, torch.zeros_like(B), magnitude, 2.0)
    assert merged.isfinite().all() and not merged[3].any()


@pytest.mark.parametrize("kernel", available(OPS["dora_norm"]))
def test_a_row_that_its_update_cancels_has_a_length_and_no_root_of_a_negative_number(kernel):
    A, B = torch.randn(4, 64), torch.randn(200, 4)
    W = -1.5 * B @ A
    with pf.using(kernel):
        norm = norms.dora_norm(W, A, B, 1.5)
    assert norm.isfinite().all() and (norm <= 1e-2 * W.norm(dim=1)).all()


def test_nan_stays_nan():
    x, W, A, B, magnitude, bias = (t.detach().clone() for t in tensors())
    W[3, 0] = float("nan")
    assert pf.dora_linear(x, W, A, B, magnitude, bias)[..., 3].isnan().all()


def test_gradients_in_float16_do_not_overflow_where_a_small_scaling_follows():
    """g * dY is beyond float16's range, and scaling * g * dY is not."""
    x, A = torch.full((2, 8), 0.01).half().requires_grad_(), torch.full((1, 8), 0.01).half().requires_grad_()
    weight, B = torch.full((4, 8), 0.007).half(), torch.full((4, 1), 0.01).half().requires_grad_()
    y = pf.dora_linear(x, weight, A, B, torch.ones(4).half(), scaling=1 / 128)
    dA, dB = torch.autograd.grad(y, [A, B], torch.full_like(y, 1500.0), retain_graph=True)
    _, dA_with_x, dB_with_x = torch.autograd.grad(y, [x, A, B], torch.full_like(y, 1500.0))
    assert dA.isfinite().all() and dB.isfinite().all()
    assert torch.equal(dA, dA_with_x) and torch.equal(dB, dB_with_x)
