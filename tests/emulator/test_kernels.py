"""Cases that the tests of the ops do not reach: every kernel of an op, edge cases, requirements of csrc/cuda alone.

Sizes, alignment and the number of multiprocessors determine the kernel. Each test names its kernel.
"""

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.ops import philox
from pypeft_fast.testing import Case, assert_agrees, cut, sample
from tests import emulator
from tests.emulator.launches import DECODE, DTYPES, RUNS

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
PRODUCTS = [v for v in RUNS if v[0] in ("lora_linear", "lora_dx", "ia3_linear", "ia3_dx_dl")]
DECODING = [v for v in RUNS if v[0].endswith(DECODE)]
COMPOSED = [("lora_forward", {}), ("lora_backward", {})]  # they launch the kernels of other ops


@pytest.fixture(autouse=True)
def _loaded():
    with emulator.loaded():
        yield
    emulator.configure()


@pytest.mark.parametrize("op,options", DECODING)
@pytest.mark.parametrize("dtype,adapter", DTYPES)
@pytest.mark.parametrize("M,K,N", [(1, 8, 1), (8, 136, 40), (9, 600, 33), (16, 1032, 17)])
def test_decoding(op, options, M, K, N, dtype, adapter, poisoned):
    """decode.cu: at most 16 rows, aligned rows of x and W; one or two groups of 8 rows, partial tiles in K and N."""
    assert_agrees(op, "cuda", Case(M, K, N, 5, 0.0, dtype, adapter, options=options))


@pytest.mark.parametrize("op,options", PRODUCTS)
@pytest.mark.parametrize("dtype,adapter", DTYPES)
@pytest.mark.parametrize("multiprocessors", [1, 100])
def test_large_and_small_tiles_of_the_product(op, options, dtype, adapter, multiprocessors, poisoned):
    """product.cu: four tiles of 128 x 128 are enough for one multiprocessor; for a hundred it takes smaller tiles."""
    emulator.configure(multiprocessors=multiprocessors)
    assert_agrees(op, "cuda", Case(136, 136, 144, 40, 0.3, dtype, adapter, options=options))


@pytest.mark.parametrize("op", ["lora_linear", "lora_dx"])
@pytest.mark.parametrize("case", [Case(20, 600, 9, 16, 0.3), Case(24, 65, 900, 16, 0.3)], ids=str)
def test_a_low_rank_part_that_outweighs_the_frozen_one_costs_no_bit(op, case, poisoned):
    """In float32 each of many steps along the inner dimension would be rounded if it were added to a large sum."""
    assert_agrees(op, "cuda", case)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_many_bands_of_tiles_cover_the_output_once(dtype, poisoned):
    """There are more rows of tiles than a band has, and the last band has fewer than the others."""
    assert_agrees("lora_linear", "cuda", Case(64 * 11 + 3, 16, 136, 2, 0.0, dtype))


@pytest.mark.parametrize("op", ["lora_shrink", "lora_ds_db", "lora_da"])
@pytest.mark.parametrize("dtype,adapter", DTYPES)
@pytest.mark.parametrize("M,r", [(300, 3), (300, 16), (300, 17), pytest.param(520, 130, marks=pytest.mark.slow)])
def test_sums_over_many_blocks(op, dtype, adapter, M, r, poisoned):
    """The number of parts is that of a large GPU; every tile size of ranks occurs."""
    emulator.configure(multiprocessors=132)
    assert_agrees(op, "cuda", Case(M, 520, 528, r, 0.3, dtype, adapter))


@pytest.mark.parametrize("multiprocessors", [1, 132])
@pytest.mark.parametrize("M,K,r", [(5, 24, 3), (70, 331, 20)])
def test_stacked_projections_have_masks_of_their_own(M, K, r, multiprocessors, poisoned):
    emulator.configure(multiprocessors=multiprocessors)
    x, A = torch.randn(M, K), torch.randn(3 * r, K)
    seeds = torch.tensor([7, -(2**63), 2**62 + 12345])
    s, mask = torch.ops.pypeft_fast.lora_shrink_cuda(x, A, 0.3, seeds, False)
    for g, (seed, part, bits) in enumerate(zip(seeds.split(1), s.split(r, dim=1), mask.split(M), strict=True)):
        assert torch.equal(bits, philox.packed_mask(M, K, 0.3, seed))
        expected = philox.dropped(x.double(), bits, 0.3) @ A[g * r : (g + 1) * r].double().t()
        torch.testing.assert_close(part.double(), expected, rtol=1e-5, atol=1e-5)


PRODUCTS = [run for run in RUNS if run[0] != "dequantize"]  # dequantize has no product and no strides


@pytest.mark.parametrize("op,options", PRODUCTS)
def test_tf32_only_where_pytorch_allows_it(op, options):
    """With tf32 the error is that of 11 bits; without tf32 it is that of 24 bits."""
    args = sample(op, cut(op, "cuda", Case(24, 64, 48, 8, 0.0, options=options)))
    reference = next(k.function for k in OPS[op].kernels if k.name == "reference")
    errors, settings = {}, torch.backends.cuda.matmul
    before = settings.fp32_precision
    try:
        for settings.fp32_precision in ("ieee", "tf32"):
            with pf.using("cuda"):
                got, want = OPS[op](*args), reference(*args)
            got, want = (got[0], want[0]) if isinstance(got, tuple) else (got, want)
            errors[settings.fp32_precision] = ((got - want).abs().max() / want.abs().max()).item()
    finally:
        settings.fp32_precision = before
    assert errors["ieee"] < 1e-6 and 1e-5 < errors["tf32"] < 2e-3


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 3.4028e38])
@pytest.mark.parametrize("M", [8, 40], ids=["decoding", "tiles"])
@pytest.mark.parametrize("op", ["lora_linear", "lora_shrink", "lora_ds_db", "lora_dx", "lora_da"])
def test_what_is_not_finite_is_where_pytorch_has_it(op, M, value):
    """Each operand in turn; the others are 1 and -1, which have nothing in the lower of their three parts."""
    args = sample(op, Case(M, 48, 56, 8, 0.0))
    operands = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor) and a.dtype == F32 and a.dim() == 2]
    for at in operands:
        given = [a.sign() if i in operands else a for i, a in enumerate(args)]
        given[at][3, 5] = value
        with pf.using("cuda"):
            got = OPS[op](*given)
        torch.testing.assert_close(got, OPS[op].function("reference")(*given), equal_nan=True)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 3.38e38, -1e-40])
@pytest.mark.parametrize("op", ["lora_shrink", "lora_ds_db", "lora_da"])
@pytest.mark.parametrize("r", [8, 20])
def test_what_is_not_finite_in_parts_is_where_pytorch_has_it(op, value, r):
    """A float adapter beside bfloat16: each operand in turn; the others are 1 and -1, whose smaller parts are 0."""
    args = sample(op, Case(40, 48, 56, r, 0.0, BF16, F32))
    operands = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor) and a.is_floating_point()]
    for at in operands:
        given = [a.sign() if i in operands else a for i, a in enumerate(args)]
        given[at][3, 5] = value
        with pf.using("cuda"):
            got = OPS[op](*given)
        torch.testing.assert_close(got, OPS[op].function("reference")(*given), equal_nan=True)


@pytest.mark.parametrize("op", ["lora_shrink", "lora_ds_db", "lora_da"])
@pytest.mark.parametrize("r", [16, 40])
def test_a_float_beside_bfloat16_keeps_all_24_bits(op, r):
    """The sums have one term, and the activation is 1: a result is the adapter's float."""
    args = list(sample(op, Case(24, 40, 32, r, 0.0, BF16, F32)))
    for i, value in enumerate(args):
        if isinstance(value, torch.Tensor) and value.dtype == BF16:
            args[i] = torch.eye(*value.shape, dtype=BF16)
    with pf.using("cuda"):
        got = OPS[op](*args)
    torch.testing.assert_close(got, OPS[op].function("reference")(*args), rtol=0, atol=0)


@pytest.mark.parametrize("op,options", PRODUCTS)
@pytest.mark.parametrize("multiprocessors", [1, 100])  # one tile of 128 x 128 is enough for one
def test_a_misaligned_pointer_and_dense_rows_of_odd_length(op, options, multiprocessors):
    """Copies of 16 bytes need rows aligned to 16 bytes; other matrices are copied element by element."""
    emulator.configure(multiprocessors=multiprocessors)
    args = sample(op, cut(op, "cuda", Case(40, 48, 56, 8, 0.3, BF16, options=options)))
    with pf.using("cuda"):
        aligned = OPS[op](*args)
        for padding in (1, 8):
            moved = []
            for a in args:
                if isinstance(a, torch.Tensor) and a.dim() == 2 and a.is_floating_point():
                    wide = torch.randn(a.shape[0], a.shape[1] + padding).to(a.dtype)
                    wide[:, padding:] = a
                    a = wide[:, padding:]
                moved.append(a)
            torch.testing.assert_close(OPS[op](*moved), aligned, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("op,options", [v for v in RUNS if v[0] in ("lora_ds_db", "lora_da", "lora_dx", "ia3_dx_dl")])
def test_expanded_gradients(op, options):
    """Gradients with stride 0, as autograd gives them for y.sum().backward()."""
    for dtype in (F32, BF16):
        args = sample(op, Case(20, 24, 16, 4, 0.3, dtype, options=options))
        args = (args[0][:1, :1].expand(args[0].shape), *args[1:])
        with pf.using("cuda"):
            got = OPS[op](*args)
            want = OPS[op](args[0].contiguous(), *args[1:])
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("op,options", [*RUNS, *COMPOSED])
@pytest.mark.parametrize("M,K,N", [(0, 16, 16), (4, 0, 16), (4, 16, 0)])
def test_empty_dimensions(op, options, M, K, N, poisoned):
    args = sample(op, Case(M, K, N, 4, 0.0, options=options))
    with pf.using("cuda"):
        got = OPS[op](*args)
    with pf.using("reference"):
        torch.testing.assert_close(got, OPS[op](*args), check_stride=False)


@pytest.mark.parametrize("op,options", [*RUNS, *COMPOSED])
def test_a_gpu_older_than_the_oldest_target_is_refused(op, options):
    args = sample(op, Case(options=options))
    assert emulator.library().pypeft_fast_oldest_target() == 80
    words = "need a GPU of sm_80 or later; cuda:0 is sm_75"
    with emulator.capability(75), pf.using("cuda"), pytest.raises(RuntimeError, match=words):
        OPS[op](*args)
    assert_agrees(op, "cuda", Case(options=options))
