"""Several adapters with dropout over one layer: y and every gradient against float64 with the same masks."""

import itertools

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast.autograd.lora_sum import lora_sum_linear
from pypeft_fast.ops import philox
from tests.device import DEVICE

M, K, N = 10, 20, 12
RANKS, SCALINGS, PS = (2, 5, 1), (0.5, 2.0, 3.0), (0.3, 0.0, 0.6)


def tensors(dtype=torch.float32, adapter=None):
    """x, weight, bias, three A, three B."""
    generator = torch.Generator(DEVICE).manual_seed(4)
    shapes = [(2, M // 2, K), (N, K), (N,), *((r, K) for r in RANKS), *((N, r) for r in RANKS)]
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    return [t.to(dtype if i < 3 else adapter or dtype).requires_grad_() for i, t in enumerate(made)]


def ours(x, W, b, *AB, ps=PS):
    torch.manual_seed(7)
    return lora_sum_linear(x, W, AB[:3], AB[3:], b, scalings=SCALINGS, dropout_ps=ps)


def exact(x, W, b, *AB):
    """In plain PyTorch, with the masks of the seeds that `ours` draws."""
    torch.manual_seed(7)
    seeds = philox.draw_seed(x.device, None, 3)
    rows = x.flatten(0, -2)
    y = rows @ W.t() + b
    for i, (A, B) in enumerate(zip(AB[:3], AB[3:], strict=True)):
        dropped = philox.dropped(rows, philox.packed_mask(M, K, PS[i], seeds[i : i + 1]) if PS[i] else None, PS[i])
        y = y + SCALINGS[i] * (dropped @ A.t() @ B.t())
    return y.view(*x.shape[:-1], N)


def outcome(function, given):
    y = function(*given)
    return y, *torch.autograd.grad(y.square().sum(), [t for t in given if t.requires_grad])


def double(given):
    return [t.detach().double().requires_grad_(t.requires_grad) for t in given]


@pytest.mark.parametrize("dtypes", [("float32", None), ("bfloat16", "float32"), ("bfloat16", None)], ids=str)
def test_against_float64(dtypes):
    dtype, adapter = (name and getattr(torch, name) for name in dtypes)
    given = tensors(dtype, adapter)
    found, truth, eager = outcome(ours, given), outcome(exact, double(given)), None
    if adapter is None:
        eager = outcome(exact, given)
    for i, (a, b) in enumerate(zip(found, truth, strict=True)):
        error, largest = (a.double() - b).abs().max(), b.abs().max()
        allowed = torch.finfo(dtype).eps * largest * (1 if eager else 8)
        if eager:
            allowed += 2 * (eager[i].double() - b).abs().max()
        assert a.dtype == (dtype if i < 4 else adapter or dtype) and error <= allowed


def test_each_subset_of_what_needs_gradients():
    whole = dict(zip(range(9), outcome(ours, tensors())[1:], strict=True))
    for needed in [*itertools.combinations(range(9), 1), (0, 3), (3, 6), (1, 4), (2, 8), (5, 6, 7)]:
        given = [t.detach().requires_grad_(i in needed) for i, t in enumerate(tensors())]
        for i, grad in zip(needed, outcome(ours, given)[1:], strict=True):
            torch.testing.assert_close(grad, whole[i])


def test_without_a_graph_and_without_dropout():
    given = tensors()
    expected = outcome(ours, given)[0]
    with torch.no_grad():
        assert torch.equal(ours(*given), expected)
        plain = ours(*given, ps=(0.0, 0.0, 0.0))
    x, W, b, *AB = double(given)
    total = W + sum(s * B @ A for s, A, B in zip(SCALINGS, AB[:3], AB[3:], strict=True))
    torch.testing.assert_close(plain.double(), x @ total.t() + b, rtol=1e-5, atol=1e-4)


def test_a_quantised_weight():
    x, W, b, *AB = tensors()
    frozen = pf.quantize(torch.randn(N, 64))
    x, AB = torch.randn(M, 64, requires_grad=True), [torch.randn(r, 64, requires_grad=True) for r in RANKS] + AB[3:]
    decoded = frozen.dequantize(torch.float32)
    found = outcome(lambda x, *AB: ours(x, frozen, b.detach(), *AB), [x, *AB])
    wanted = outcome(lambda x, *AB: ours(x, decoded, b.detach(), *AB), [x, *AB])
    for a, c in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-5 * c.abs().max().item())


def test_a_scaling_that_is_a_tensor_trains():
    x, W, b, *AB = (t.detach() for t in tensors())
    scaling = torch.tensor(2.0, requires_grad=True)
    y = lora_sum_linear(x, W, AB[:1], AB[3:4], b, scalings=[scaling], dropout_ps=[0.0])
    y.sum().backward()
    torch.testing.assert_close(scaling.grad, (x @ AB[0].t() @ AB[3].t()).sum())


def test_what_is_saved_is_x_itself_and_small():
    given, saved = tensors(), []
    x, W = given[:2]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ours(*given)
    big = [t for t in saved if t.numel() >= M * K]
    assert {t.data_ptr() for t in big} <= {x.data_ptr(), W.data_ptr()}


@pytest.mark.parametrize(
    "change,words",
    [
        (dict(dropout_ps=[0.1]), "have 3, 3, 3 and 1 elements"),
        (dict(dropout_ps=[0.1, 1.0, 0.1]), "dropout p=1.0"),
        (dict(lora_Bs=[torch.randn(N, 2), torch.randn(N, 4), torch.randn(N, 1)]), r"lora_Bs\[1\] has shape \(12, 4\)"),
        (dict(lora_As=[], lora_Bs=[], scalings=[], dropout_ps=[]), "at least one"),
    ],
)
def test_bad_input(change, words):
    x, W, b, *AB = tensors()
    good = dict(lora_As=AB[:3], lora_Bs=AB[3:], scalings=SCALINGS, dropout_ps=PS)
    with pytest.raises(ValueError, match=words):
        lora_sum_linear(x, W, bias=b, **(good | change))
