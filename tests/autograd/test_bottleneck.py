"""bottleneck: the formula, gradients in float64, the dropout stream, and the saved tensors."""

import pytest
import torch
import torch.nn.functional as F

from pypeft_fast.autograd.bottleneck import ACTIVATIONS, bottleneck
from pypeft_fast.ops import philox
from tests.autograd.saving import keeping, saved_and_ran
from tests.device import DEVICE


def arguments(norm, separate, dtype=torch.float64):
    shapes = dict(x=(2, 3, 6), down=(4, 6), down_bias=(4,), up=(6, 4), up_bias=(6,))
    shapes |= dict(norm_weight=(6,), norm_bias=(6,)) if norm else {}
    shapes |= dict(residual=(2, 3, 6)) if separate else {}
    return {name: torch.randn(shape, dtype=dtype, requires_grad=True) for name, shape in shapes.items()}


def plain(x, down, down_bias, up, up_bias, activation, scaling, residual=None, norm_weight=None, norm_bias=None):
    normed = x if norm_weight is None else F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias)
    inner = ACTIVATIONS[activation][0](F.linear(normed, down, down_bias))
    return (x if residual is None else residual) + scaling * F.linear(inner, up, up_bias)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("separate", [False, True])
def test_values_and_gradients(activation, norm, separate):
    given = arguments(norm, separate)
    y = bottleneck(**given, activation=activation, scaling=0.7)
    expected = plain(**given, activation=activation, scaling=0.7)
    torch.testing.assert_close(y, expected)
    dY = torch.randn_like(y)
    found = torch.autograd.grad(y, list(given.values()), dY)
    for a, b in zip(found, torch.autograd.grad(expected, list(given.values()), dY), strict=True):
        torch.testing.assert_close(a, b)
        assert a.any()


def test_dropout_is_the_philox_stream():
    given = arguments(False, False)
    y = bottleneck(**given, scaling=0.7, dropout_p=0.4, generator=torch.Generator(DEVICE).manual_seed(5))
    seed = philox.draw_seed(DEVICE, torch.Generator(DEVICE).manual_seed(5))
    keep = philox.unpack(philox.packed_mask(6, 4, 0.4, seed), 4).view(2, 3, 4)
    x, down, bias, up, up_bias = given.values()
    inner = F.relu(F.linear(x, down, bias)) * keep * philox.scale(0.4)
    expected = x + 0.7 * F.linear(inner, up, up_bias)
    torch.testing.assert_close(y, expected)
    assert not keep.all()
    for a, b in zip(*(torch.autograd.grad(out.sum(), list(given.values())) for out in (y, expected)), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(bottleneck(**given, dropout_p=0.4, training=False), bottleneck(**given))


@pytest.mark.parametrize("norm", [False, True])
def test_x_and_the_bottleneck_are_saved_and_no_copy(norm):
    given = arguments(norm, False)
    with keeping() as saved:
        bottleneck(**given)
    known = {p.data_ptr() for p in given.values()}
    others = sorted(t.numel() for t in saved if t.data_ptr() not in known)
    assert others == ([6, 6, 24] if norm else [24])  # means and deviations of six rows, the bottleneck


def test_dropout_takes_loras_ops_and_one_bit_an_element():
    given = arguments(False, False, torch.float32)
    kept, ran = saved_and_ran(lambda: bottleneck(**given, dropout_p=0.4))
    assert ran == ["lora_shrink", "lora_da"]
    known = {p.data_ptr() for p in given.values()}
    others = {(tuple(t.shape), t.dtype) for t in kept if t.data_ptr() not in known}
    assert others == {((6, 4), torch.float32), ((6, 1), torch.uint8)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dropout_in_every_dtype(dtype):
    """Half precision with float32 parameters, compared with float64 and the same masks."""
    given = arguments(False, True, torch.float32)
    for name in ("x", "residual"):
        given[name] = given[name].detach().to(dtype).requires_grad_()
    wide = {name: value.detach().double().requires_grad_() for name, value in given.items()}
    results = []
    for values in (given, wide):
        y = bottleneck(**values, dropout_p=0.4, scaling=0.7, generator=torch.Generator(DEVICE).manual_seed(5))
        results.append((y, *torch.autograd.grad(y.double().sum(), list(values.values()))))
    for value, truth in zip(*results, strict=True):
        atol = 16 * torch.finfo(dtype).eps * max(truth.abs().max().item(), 1)
        torch.testing.assert_close(value.double(), truth, rtol=0, atol=atol)
    assert [g.dtype for g in results[0][1:]] == [value.dtype for value in given.values()]


@pytest.mark.parametrize("K,N", [(0, 6), (6, 0)])
def test_empty_features(K, N):
    shapes = dict(x=(5, K), down=(4, K), down_bias=(4,), up=(N, 4), up_bias=(N,), residual=(5, N))
    given = {name: torch.randn(shape, requires_grad=True) for name, shape in shapes.items()}
    y = bottleneck(**given)
    torch.testing.assert_close(y, plain(**given, activation="relu", scaling=1.0))
    grads = torch.autograd.grad(y.sum(), list(given.values()))
    assert [g.shape for g in grads] == [value.shape for value in given.values()]


def test_half_precision_over_float32_parameters_agrees_with_float64():
    given = {k: v.detach().float().requires_grad_() for k, v in arguments(True, False).items()}
    given["x"] = given["x"].detach().bfloat16().requires_grad_()
    wide = {name: value.detach().double().requires_grad_() for name, value in given.items()}
    y, truth = bottleneck(**given, activation="silu"), plain(**wide, activation="silu", scaling=1.0)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), truth, rtol=0, atol=0.02 * truth.abs().max().item())
    dY = torch.randn(2, 3, 6).bfloat16()
    grads = torch.autograd.grad(y, list(given.values()), dY)
    expected = torch.autograd.grad(truth, list(wide.values()), dY.double())
    for value, grad, want in zip(given.values(), grads, expected, strict=True):
        assert grad.dtype == value.dtype
        torch.testing.assert_close(grad.double(), want, rtol=0, atol=0.03 * want.abs().max().item())


def test_bad_arguments():
    given = arguments(False, False)
    with pytest.raises(ValueError, match="activation='sin' must be one of relu, silu"):
        bottleneck(**given, activation="sin")
    with pytest.raises(ValueError, match=r"p=1.0 must be in \[0, 1\)"):
        bottleneck(**given, dropout_p=1.0)
    with pytest.raises(
        ValueError, match=r"x has shape \(2, 3, 5\), expected \(.., 6\): down of shape \(4, 6\) takes 6"
    ):
        bottleneck(**given | dict(x=torch.zeros(2, 3, 5)))
    with pytest.raises(ValueError, match="up must have 2 dimensions"):
        bottleneck(**given | dict(up=torch.zeros(4)))
    with pytest.raises(ValueError, match=r"do not fit: .* residual \(2, 3, 5\)"):
        bottleneck(**given, residual=torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match=r"down_bias has shape \(1,\), expected \(4,\)"):
        bottleneck(**given | dict(down_bias=torch.zeros(1)))
    with pytest.raises(ValueError, match=r"up_bias has shape \(1,\), expected \(6,\)"):
        bottleneck(**given | dict(up_bias=torch.zeros(1)))
    with pytest.raises(ValueError, match="one of norm_weight and norm_bias is None"):
        bottleneck(**given, norm_weight=torch.ones(6))
    with pytest.raises(ValueError, match=r"norm_bias has shape \(1,\), expected \(6,\)"):
        bottleneck(**given, norm_weight=torch.ones(6), norm_bias=torch.ones(1))
