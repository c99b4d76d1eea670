"""pf.multi_lora_linear: gradients, saved tensors, the index, dropout, checkpointing, compile, formats, bad input."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.testing import available
from tests.autograd.saving import saved_and_ran
from tests.device import DEVICE

KERNELS = sorted(set(available(OPS["multi_lora_forward"])) & set(available(OPS["multi_lora_backward"])))
RANKS, SCALINGS, M, K, N = (3, 1, 5), [0.5, 2.0, 1.5], 12, 24, 17
INDEX = torch.tensor([0, 1, -1, 0, 1, 0, -1, -1, 1, 0, 0, 1])  # the third adapter has no rows


def tensors(dtype=torch.float32, adapter=None, x_shape=(M, K)):
    shapes = [(x_shape, dtype), ((N, K), dtype), ((N,), dtype)]
    x, W, b = (torch.randn(shape).to(d).requires_grad_() for shape, d in shapes)
    A = [torch.randn(r, K).to(adapter or dtype).requires_grad_() for r in RANKS]
    B = [torch.randn(N, r).to(adapter or dtype).requires_grad_() for r in RANKS]
    return x, W, b, A, B


def eager(x, W, b, A, B, index, scalings):
    y = torch.nn.functional.linear(x, W, b)
    for a, (down, up) in enumerate(zip(A, B, strict=True)):
        y = y + torch.where((index == a).unsqueeze(1), x @ down.t() @ up.t() * scalings[a], 0)
    return y


@pytest.mark.parametrize("kernel", KERNELS)
def test_values_and_every_gradient(kernel):
    x, W, b, A, B = tensors()
    leaves = x, W, b, *A, *B
    with pf.using(kernel):
        y = pf.multi_lora_linear(x, W, A, B, INDEX, b, scalings=SCALINGS)
        dY = torch.randn_like(y)
        got = torch.autograd.grad(y, leaves, dY)
    expected = eager(x, W, b, A, B, INDEX, SCALINGS)
    torch.testing.assert_close(y, expected)
    for g, wanted in zip(got, torch.autograd.grad(expected, leaves, dY), strict=True):
        torch.testing.assert_close(g, wanted, rtol=1e-4, atol=1e-5)
    assert not got[5].any() and not got[8].any()


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("dtype,adapter", [(torch.float32, None), (torch.bfloat16, torch.float32)], ids=str)
def test_every_adapter_trains_as_it_does_alone(p, dtype, adapter):
    """Compares each adapter in a mixed batch with a run in which the other rows have no adapter; same masks."""
    x, W, b, A, B = tensors(dtype, adapter)
    dY = torch.randn(M, N).to(dtype)

    def grads(index):
        generator = torch.Generator(DEVICE).manual_seed(5)
        options = dict(scalings=SCALINGS, dropout_ps=[p, 0.0, p], generator=generator)
        y = pf.multi_lora_linear(x, W, A, B, index, b, **options)
        return y, torch.autograd.grad(y, (x, *A, *B), dY)

    y, mixed = grads(INDEX)
    for a in range(2):
        own = INDEX == a
        of_y, alone = grads(torch.where(own, a, -1))
        assert torch.equal(y[own], of_y[own]) and torch.equal(mixed[0][own], alone[0][own])
        assert torch.equal(mixed[1 + a], alone[1 + a]) and torch.equal(mixed[4 + a], alone[4 + a])
        assert alone[1 + a].abs().max() > 0 and alone[4 + a].abs().max() > 0


def test_gradcheck():
    def function(x, W, b, *adapters):
        generator = torch.Generator(DEVICE).manual_seed(1)
        options = dict(scalings=SCALINGS, dropout_ps=[0.4, 0.0, 0.2], generator=generator)
        return pf.multi_lora_linear(x, W, adapters[:3], adapters[3:], INDEX, b, **options)

    x, W, b, A, B = tensors(torch.float64)
    assert torch.autograd.gradcheck(function, (x, W, b, *A, *B))


def test_a_number_a_row_of_the_first_dimension_or_a_flattened_row():
    x, W, b, A, B = tensors(x_shape=(4, 3, K))
    of_four = torch.tensor([1, -1, 0, 1])
    expected = eager(x.view(M, K), W, b, A, B, of_four.repeat_interleave(3), SCALINGS).view(4, 3, N)
    for index in (of_four, of_four.repeat_interleave(3), of_four.repeat_interleave(3).view(4, 3)):
        torch.testing.assert_close(pf.multi_lora_linear(x, W, A, B, index, b, scalings=SCALINGS), expected)
    one = pf.multi_lora_linear(x[0, 0], W, A, B, torch.tensor([1]), b, scalings=SCALINGS)
    assert one.shape == (N,)
    torch.testing.assert_close(one, expected[0, 0])


def test_stacked_adapters_and_one_number_for_all():
    x, W, b, _, _ = tensors()
    A, B = torch.randn(3, 4, K).requires_grad_(), torch.randn(3, N, 4).requires_grad_()
    y = pf.multi_lora_linear(x, W, A, B, INDEX, scalings=2)
    dY = torch.randn_like(y)
    grads = torch.autograd.grad(y, (A, B), dY)
    expected = eager(x, W, None, A, B, INDEX, [2.0] * 3)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(grads, torch.autograd.grad(expected, (A, B), dY), rtol=1e-4, atol=1e-4)


def test_only_what_backward_needs_is_saved():
    def saved(frozen):
        x, W, b, A, B = tensors()
        for t in (W, *frozen(x, A, B)):
            t.requires_grad_(False)
        kept, ran = saved_and_ran(
            lambda: pf.multi_lora_linear(x, W, A, B, INDEX, b, scalings=SCALINGS, dropout_ps=0.1), True
        )
        return (
            any(t.data_ptr() == x.data_ptr() for t in kept),
            sum(t.dtype == torch.uint8 for t in kept),
            len(kept),
            ran,
        )

    everything = saved(lambda x, A, B: ())
    assert everything[:3] == (True, 1, 5 + 6) and everything[3] == ["multi_lora_forward", "multi_lora_backward"]
    assert saved(lambda x, A, B: A)[:2] == (False, 1)  # no dA, no x
    assert saved(lambda x, A, B: (x, *A))[:2] == (False, 0)  # dB alone
    assert saved(lambda x, A, B: (x, *A, *B))[:3] == (False, 0, 0)  # the bias alone


def test_without_gradients_only_the_forward_op_runs():
    x, W, b, A, B = tensors()
    with pf.recording() as ran, torch.no_grad():
        pf.multi_lora_linear(x, W, A, B, INDEX, b, scalings=SCALINGS)
    assert [op for op, _ in ran] == ["multi_lora_forward"]


def test_dropout_is_off_in_eval_and_an_adapter_without_a_rate_drops_nothing():
    x, W, b, A, B = tensors()
    expected = eager(x, W, b, A, B, INDEX, SCALINGS)
    options = dict(scalings=SCALINGS, dropout_ps=[0.5, 0.0, 0.0])
    torch.testing.assert_close(pf.multi_lora_linear(x, W, A, B, INDEX, b, training=False, **options), expected)
    y = pf.multi_lora_linear(x, W, A, B, INDEX, b, **options)
    torch.testing.assert_close(y[INDEX != 0], expected[INDEX != 0])
    assert (y - expected)[INDEX == 0].abs().max() > 0.1


def test_activation_checkpointing_draws_the_same_masks_again():
    x, W, b, A, B = tensors()
    grads = []
    for run in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=False)):
        torch.manual_seed(4)
        y = run(lambda x: pf.multi_lora_linear(x, W, A, B, INDEX, b, scalings=1.0, dropout_ps=0.5), x)
        grads.append(torch.autograd.grad(y.square().sum(), (x, *A, *B)))
    assert all(torch.equal(a, c) for a, c in zip(*grads, strict=True))


def test_compiles_to_one_graph():
    x, W, b, A, B = tensors()

    def step(x, index):
        return pf.multi_lora_linear(x, W, A, B, index, b, scalings=SCALINGS)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    y, expected = compiled(x, INDEX), step(x, INDEX)
    assert torch.equal(y, expected)
    pairs = (torch.autograd.grad(out.square().sum(), (x, *A, *B)) for out in (y, expected))
    assert all(torch.equal(a, c) for a, c in zip(*pairs, strict=True))


@pytest.mark.parametrize("format", ["nf4", "int8"])
def test_over_a_quantised_weight(format):
    x, _, b, A, B = tensors()
    weight = pf.quantize(torch.randn(N, K), format)
    y = pf.multi_lora_linear(x, weight, A, B, INDEX, b, scalings=SCALINGS)
    expected = eager(x, weight.dequantize(), b, A, B, INDEX, SCALINGS)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    got, wanted = (torch.autograd.grad(out.square().sum(), (x, *A, *B)) for out in (y, expected))
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-2)


def test_autocast_is_that_of_lora_linear():
    x, W, b, A, B = tensors()
    with torch.autocast(DEVICE, torch.bfloat16):
        y = pf.multi_lora_linear(x, W, A, B, INDEX, b, scalings=SCALINGS)
    half = pf.multi_lora_linear(x.bfloat16(), W.bfloat16(), A, B, INDEX, b.bfloat16(), scalings=SCALINGS)
    assert y.dtype == torch.bfloat16 and torch.equal(y, half)


@pytest.mark.parametrize(
    "changed,error,words",
    [
        (dict(adapter_index=INDEX[1:]), ValueError, r"adapter_index has shape \(11,\) for x of shape \(12, 24\)"),
        (dict(adapter_index=INDEX.int()), TypeError, "adapter_index is torch.int32; give a tensor of int64"),
        (dict(adapter_index=INDEX + 2), ValueError, "adapter_index holds 3; there are 3 adapters"),
        (dict(adapter_index=[0] * M), TypeError, "adapter_index is list; give a tensor of int64"),
        (dict(scalings=[1.0]), ValueError, "scalings has 1 elements for 3 adapters"),
        (dict(scalings="1.0"), TypeError, "scalings='1.0': give a number, or a list"),
        (dict(dropout_ps=[0.0] * 4), ValueError, "dropout_ps has 4 elements for 3 adapters"),
        (dict(dropout_ps=1.0), ValueError, r"p=1.0 must be in \[0, 1\)"),
        (dict(lora_A=torch.randn(3, K)), ValueError, r"lora_A has shape \(3, 24\); give a list of matrices"),
        (dict(lora_A=[torch.randn(r, K) for r in (3, 2, 5)]), ValueError, r"lora_B\[1\] has shape \(17, 1\), expected"),
        (dict(lora_A=[torch.randn(3, K)]), ValueError, "lora_B has 3 elements for|scalings has 3 elements for 1"),
        (dict(x=torch.randn(M, K - 1)), ValueError, r"x has shape \(12, 23\), expected \(.., 24\)"),
    ],
)
@pytest.mark.parametrize("grad", [True, False])
def test_bad_input_is_named(changed, error, words, grad):
    x, W, b, A, B = tensors()
    given = dict(x=x, weight=W, lora_A=A, lora_B=B, adapter_index=INDEX, bias=b, scalings=SCALINGS) | changed
    with torch.set_grad_enabled(grad), pytest.raises(error, match=words):
        pf.multi_lora_linear(**given)
