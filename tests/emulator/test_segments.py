"""multi_lora_forward in decoding: each row has another adapter, in two launches that read W and the adapters once."""

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast.ops.multi_lora_forward import CUDA_ADAPTERS, CUDA_ROWS, multi_lora_forward
from pypeft_fast.testing import CASES, FORMAT_CASES, VARIANTS, Case, assert_agrees
from tests import emulator
from tests.emulator.launches import DTYPES

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
OP = "multi_lora_forward"
FIRST, *OTHERS = [options for op, options in VARIANTS.values() if op == OP]


@pytest.fixture(autouse=True)
def _loaded():
    """On sm_90 the second launch overlaps with the first."""
    with emulator.loaded(), emulator.capability(90):
        yield
    emulator.configure()


def counted(args):
    """(outputs, counters) of one call."""
    with pf.using("cuda"), emulator.counting() as counters:
        outputs = multi_lora_forward(*args)
    return outputs, counters()


@pytest.mark.parametrize("options", [FIRST, *(pytest.param(o, marks=pytest.mark.slow) for o in OTHERS)], ids=str)
@pytest.mark.parametrize("case", [*CASES, *FORMAT_CASES], ids=str)
def test_agrees_in_every_sample_of_the_registry(case, options, poisoned):
    """The samples are cut to 16 rows without dropout."""
    assert_agrees(OP, "cuda", Case(**vars(case) | {"options": options}))


@pytest.mark.parametrize("n", [1, 2, 8, 64, CUDA_ADAPTERS])
@pytest.mark.parametrize("dtype,adapter", DTYPES)
@pytest.mark.parametrize("M,K,N,r", [(1, 24, 40, 8), (8, 136, 24, 16), (9, 1040, 33, 64), (16, 75, 17, 41)])
def test_any_number_of_adapters(n, dtype, adapter, M, K, N, r, poisoned):
    """Even and odd ranks up to 64; ranks and rows with and without loads of 16 bytes."""
    assert_agrees(OP, "cuda", Case(M, K, N, r, 0.0, dtype, adapter, options={"adapters": n}))


def many(ranks, M=16, K=256, N=128, dtype=BF16):
    """Arguments with an adapter for each of these ranks; row m has adapter m % n."""
    x, W = torch.randn(M, K, dtype=dtype), torch.randn(N, K, dtype=dtype)
    A = [torch.randn(r, K, dtype=dtype) / 16 for r in ranks]
    B = [torch.randn(N, r, dtype=dtype) for r in ranks]
    n = len(ranks)
    return [x, W, None, A, B, torch.arange(M) % n, [0.5 + a / 4 for a in range(n)], [0.0] * n, None]


@pytest.mark.parametrize("ranks", [[8], [16] * 8, [8, 16, 24, 64] * 16], ids=len)
@pytest.mark.parametrize("format", ["dense", "nf4"])
def test_two_launches_whatever_the_number_of_adapters(ranks, format):
    args = many(ranks)
    if format != "dense":
        args[1] = pf.quantize(args[1], format)
    c = counted(args)[1]
    assert (c.launches, c.overlapping) == (2, 1)


@pytest.mark.parametrize("ranks", [[16], [16] * 8, [8, 16, 32, 64] * 4], ids=len)
def test_the_weight_and_the_adapters_that_have_rows_are_read_once(ranks):
    """x is read by both launches, and s by the second one. The adapters in the second half have no rows."""
    args = many(ranks * 2, K=1024, N=512)
    args[5] = torch.arange(16) % len(ranks)
    (y, s, _), c = counted(args)
    present = [t.nbytes for side in args[3:5] for t in side[: len(ranks)]]
    least = sum(present) + args[1].nbytes + 2 * args[0].nbytes + 2 * s.nbytes + y.nbytes
    moved = 32 * (c.load.first + c.store.first)
    assert least <= moved <= 1.01 * least
    assert c.shared_load.conflicts == 0


def test_only_rows_of_the_base_read_no_adapter():
    args = many([16] * 8)
    args[5] = torch.full((16,), -1)
    (y, s, _), c = counted(args)
    torch.testing.assert_close(y, torch.nn.functional.linear(args[0], args[1]))
    assert not s.any() and 32 * c.load.first < args[1].nbytes + 3 * args[0].nbytes + s.nbytes


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_a_row_has_the_same_bits_whatever_the_adapters_of_the_other_rows(dtype):
    args = many([16, 8, 40, 64, 5], dtype=dtype)
    with pf.using("cuda"):
        y, s, _ = multi_lora_forward(*args)
        own = args[5] == 2
        args[5] = torch.where(own, 2, torch.where(args[5] == 0, 3, -1))
        again = multi_lora_forward(*args)
    assert torch.equal(y[own], again[0][own]) and torch.equal(s[own], again[1][own])
    assert not torch.equal(y[~own], again[0][~own])


def test_adapters_of_any_strides_and_an_index_with_gaps():
    args = many([16, 8, 3])
    expected, *_ = counted(args)
    strided = list(args)
    strided[3] = [args[3][0].t().contiguous().t(), torch.cat([args[3][1]] * 2, 1)[:, :256], args[3][2]]
    strided[4] = [args[4][0].t().contiguous().t(), torch.cat([args[4][1]] * 2, 1)[:, :8], args[4][2]]
    strided[5] = torch.stack([args[5], torch.full((16,), 77)], 1)[:, 0]
    assert strided[5].stride() == (2,)
    torch.testing.assert_close(counted(strided)[0], expected)


def test_leading_dimensions_of_x_and_a_view_that_no_reshape_can_make():
    args = many([16, 8])
    expected, *_ = counted(args)
    shaped = [args[0].view(2, 8, 256), *args[1:]]
    y, s, _ = counted(shaped)[0]
    assert y.shape == (2, 8, 128) and torch.equal(y.view(16, 128), expected[0]) and torch.equal(s, expected[1])
    shaped[0] = args[0].view(2, 8, 256).transpose(0, 1)
    shaped[5] = args[5].view(2, 8).t().flatten()
    torch.testing.assert_close(counted(shaped)[0][0], expected[0].view(2, 8, 128).transpose(0, 1))


@pytest.mark.parametrize("number", [-2, 3, 2**40])
def test_a_number_that_no_adapter_has_counts_as_no_adapter(number):
    """On a GPU the op does not read the index before the launch."""
    args = many([16, 8, 3])
    out, base = args[5].clone(), args[5].clone()
    out[4], base[4] = number, -1
    twin = torch.ops.pypeft_fast.multi_lora_forward_cuda
    torch.testing.assert_close(
        twin(*args[:5], out, *args[6:], False), twin(*args[:5], base, *args[6:], False), rtol=0, atol=0
    )


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_infinity_and_nan_stay_in_the_rows_of_their_adapter(value):
    args = many([16, 8, 3])
    clean = counted(args)[0][0]
    for at in (3, 4):
        spoiled = list(args)
        spoiled[at] = [t.clone() for t in args[at]]
        spoiled[at][1][:] = value
        y = counted(spoiled)[0][0]
        own = args[5] == 1
        assert not y[own].isfinite().any() and torch.equal(y[~own], clean[~own])
    spoiled = [args[0].clone(), *args[1:]]
    spoiled[0][1] = value
    y, s, _ = counted(spoiled)[0]
    others = torch.arange(16) != 1
    assert torch.equal(y[others], clean[others]) and not s[1, 8:].any()


def refused():
    """(arguments, words of the reason why the kernel does not take the arguments)"""
    rows, ps = many([16] * 2, M=CUDA_ROWS + 1), many([16] * 2)
    ps[7], ps[8] = [0.0, 0.25], torch.tensor([1, 2])
    yield rows, "it takes up to 16 rows, and x has 17"
    yield ps, r"it has no dropout, and ps=\[0.0, 0.25\]"
    yield many([1] * (CUDA_ADAPTERS + 1)), "it takes up to 128 adapters, and there are 129"


@pytest.mark.parametrize("args,words", list(refused()), ids=["rows", "dropout", "adapters"])
def test_other_calls_are_refused_with_the_reason_and_take_another_kernel(args, words):
    with pf.using("cuda"), pytest.raises(RuntimeError, match=f"{OP}: kernel 'cuda' cannot run: {words}"):
        multi_lora_forward(*args)
    with pf.recording() as ran:
        multi_lora_forward(*args)
    assert ran == [(OP, "cpu")]


def test_the_last_row_and_the_last_adapter_that_the_kernel_takes():
    args = many([1] * CUDA_ADAPTERS, M=CUDA_ROWS)
    args[5] = torch.arange(CUDA_ADAPTERS - CUDA_ROWS, CUDA_ADAPTERS)
    with pf.using("reference"):
        expected = multi_lora_forward(*args)
    torch.testing.assert_close(counted(args)[0], expected, rtol=1e-2, atol=1e-1)


def test_the_library_refuses_more_than_its_arrays_hold():
    rows, ps, adapters = (args for args, _ in refused())
    for args in (rows, ps, adapters):
        with pytest.raises(RuntimeError, match="multi_lora_forward: the CUDA kernel takes"):
            torch.ops.pypeft_fast.multi_lora_forward_cuda(*args, False)
