"""Rows of several adapters: equal to each adapter alone, whatever the number, the ranks and the order of the others."""

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.ops.lora_forward import lora_forward
from pypeft_fast.ops.multi_lora_forward import multi_lora_forward
from pypeft_fast.testing import Case, assert_agrees, available, cut, sample
from tests.ops.rejections import CASE, assert_rejects

KERNELS = available(OPS["multi_lora_forward"])
BF16, F32 = torch.bfloat16, torch.float32
MANY = [
    Case(150, 70, 41, 16, 0.3, options={"adapters": 1}),
    Case(37, 33, 29, 64, 0.3, options={"adapters": 2}),
    Case(200, 65, 300, 40, 0.3, options={"adapters": 3}),  # blocks of one adapter that end within a tile
    Case(64, 129, 270, 9, 0.3, BF16, options={"adapters": 64}),
    Case(8, 264, 265, 16, 0.0, BF16, F32, options={"adapters": 8}),
    Case(90, 51, 35, 7, 0.3, BF16, layout="strided", options={"adapters": 8}),
    Case(70, 64, 48, 8, 0.3, BF16, F32, format="nf4", options={"adapters": 8}),
    Case(0, 24, 17, 3, 0.3, options={"adapters": 8}),
]


def cut_for(kernel, case):
    return cut("multi_lora_forward", kernel, case)


def _first(change):
    return lambda tensors: [change(tensors[0]), *tensors[1:]]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", MANY, ids=str)
def test_agrees_for_any_number_of_adapters(kernel, case, poisoned):
    assert_agrees("multi_lora_forward", kernel, case)


@pytest.mark.parametrize(
    "index,value,error,words",
    [
        (0, torch.tensor(1.0), ValueError, "x must have at least 1 dimension"),
        (0, lambda x: x[..., 1:], ValueError, r"x has shape \(6, 19\), expected \(.., 20\): weight"),
        (1, lambda W: W.half(), TypeError, "weight is torch.float16 but x is torch.float32"),
        (2, lambda b: b[1:], ValueError, r"bias has shape \(9,\), expected \(10,\)"),
        (3, [], ValueError, "lora_A is empty; give at least one adapter"),
        (3, lambda A: A[1:], ValueError, "lora_B has 5 elements for 4 adapters"),
        (3, _first(lambda A: A[:, 1:]), ValueError, r"lora_A\[0\] has shape \(3, 19\), expected \(3, 20\)"),
        (3, _first(lambda A: A[:0]), ValueError, r"lora_A\[0\] has shape \(0, 20\): the rank must be at least 1"),
        (3, _first(lambda A: A.half()), TypeError, r"lora_A\[0\] is torch.float16 over a torch.float32 x"),
        (4, _first(lambda B: B[:, 1:]), ValueError, r"lora_B\[0\] has shape \(10, 2\), expected \(10, 3\)"),
        (5, lambda i: i[1:], ValueError, r"adapter_index has shape \(5,\), expected \(6,\)"),
        (5, lambda i: i.int(), TypeError, "adapter_index is torch.int32; give int64"),
        (6, [1.0], ValueError, "scalings has 1 elements for 5 adapters"),
        (7, [1.0] * 5, ValueError, "p=1.0 must be in"),
        (7, [0.0] * 5, ValueError, "give seeds if and only if some p > 0"),
        (8, None, ValueError, "give seeds if and only if some p > 0"),
        (8, lambda seeds: seeds[1:], TypeError, r"seeds must be an int64 tensor of 5 elements"),
    ],
)
def test_rejects(index, value, error, words):
    assert_rejects("multi_lora_forward", index, value, error, words)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bad", [-2, 5])
@pytest.mark.parametrize("grad", [True, False])
def test_an_index_out_of_range_is_named(kernel, bad, grad):
    args = list(sample("multi_lora_forward", cut_for(kernel, CASE)))
    args[5] = args[5].clone()
    args[5][3] = bad
    with pf.using(kernel), torch.set_grad_enabled(grad):
        with pytest.raises(ValueError, match=f"adapter_index holds {bad}; there are 5 adapters, so give 0 to 4, or -1"):
            multi_lora_forward(*args)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_each_adapter_equals_its_run_alone(kernel, n):
    """With the same seed and row numbers y, s and mask of the rows are equal, and s and mask are 0 elsewhere."""
    args = sample("multi_lora_forward", cut_for(kernel, Case(3 * n + 5, 50, 70, 16, 0.4, options={"adapters": n})))
    x, W, b, A, B, index, scalings, ps, seeds = args
    with pf.using(kernel):
        y, s, mask = multi_lora_forward(*args)
        mask = mask if any(ps) else mask.new_zeros(len(x), mask.shape[1])
        for a in range(0, n, max(1, n // 8) if kernel == "triton" else 1):  # Triton's interpreter is slow
            own, r = index == a, A[a].shape[0]
            seed = seeds[a : a + 1] if ps[a] > 0 else None
            alone = lora_forward(x, W, b, A[a], B[a], scalings[a], ps[a], seed)
            torch.testing.assert_close(y[own], alone[0][own])
            torch.testing.assert_close(s[own, :r], alone[1][own])
            assert not s[own, r:].any()
            assert torch.equal(mask[own], alone[2][own]) if ps[a] > 0 else not mask[own].any()
    base = torch.nn.functional.linear(x, W, b)
    torch.testing.assert_close(y[index < 0], base[index < 0])
    assert not s[index < 0].any() and not mask[index < 0].any() and (index < 0).any()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_infinity_and_nan_do_not_leak_into_other_rows(kernel, bad):
    args = list(sample("multi_lora_forward", cut_for(kernel, Case(40, 33, 49, 3, 0.3))))
    x, _, _, A, B, index, *_ = args
    with pf.using(kernel):
        clean = multi_lora_forward(*args)[0]
        args[3], args[4] = [t.clone() for t in A], [t.clone() for t in B]
        args[3][1][:], args[4][1][:] = bad, bad
        y = multi_lora_forward(*args)[0]
        assert not y[index == 1].isfinite().any() and torch.equal(y[index != 1], clean[index != 1])
        args[0] = x.clone()
        args[0][0] = bad  # a row without an adapter
        args[3], args[4] = A, B
        assert index[0] == -1 and torch.equal(multi_lora_forward(*args)[0][1:], clean[1:])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("count,r", [(1, 3), (1, 8), (30, 3)])
def test_infinity_in_a_row_of_lora_B_stays_in_its_column(kernel, count, r):
    """The rank is less than a vector, so a vector has elements of several rows of B."""
    x, W, b, A, B, _, *rest = sample(
        "multi_lora_forward", cut_for(kernel, Case(count, 33, 49, r, 0.0, options={"adapters": 2}))
    )
    A[0], B[0] = torch.randn(r, 33), torch.randn(49, r)
    B[0][7] = float("inf")
    with pf.using(kernel):
        y, *_ = multi_lora_forward(x, W, b, A, B, torch.zeros(len(x), dtype=torch.int64), *rest)
    assert (~y.isfinite()).any(0).nonzero().flatten().tolist() == [7]


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("r", [1, 2, 4, 5, 8, 16, 32])
@pytest.mark.parametrize("N", [1, 16, 49, 300])
def test_a_single_row_of_each_adapter(dtype, r, N):
    """With few rows of an adapter its B [N, r] is not transposed; a vector holds several rows of B if r is small."""
    x, W = torch.randn(3, 40).to(dtype), torch.randn(N, 40).to(dtype)
    A, B = [torch.randn(r, 40).to(dtype) for _ in range(3)], [torch.randn(N, r).to(dtype) for _ in range(3)]
    y, s, _ = multi_lora_forward(x, W, None, A, B, torch.tensor([2, 0, 1]), [1.0, 2.0, 0.5], [0.0] * 3, None)
    for row, (a, scaling) in enumerate([(2, 0.5), (0, 1.0), (1, 2.0)]):
        base, update = x[row].double() @ W.double().t(), scaling * (s[row].double() @ B[a].double().t())
        error, size = (y[row].double() - base - update).abs(), base.abs() + update.abs()
        assert error.max() <= (0.008 if dtype == BF16 else 1e-6) * size.max()


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_neither_the_other_rows_nor_the_threads_change_a_bit(dtype, set_threads):
    """The number of rows is the same, so the frozen product uses the same kernel."""
    args = list(sample("multi_lora_forward", Case(97, 130, 300, 16, 0.3, dtype)))
    y, s, mask = multi_lora_forward(*args)
    own = args[5] == 2
    set_threads(2)
    several = multi_lora_forward(*args)
    set_threads(1)
    assert all(torch.equal(a, b) for a, b in zip((y, s, mask), several, strict=True))
    args[5] = torch.where(own, 2, torch.where(args[5] == 0, 1, -1))
    again = multi_lora_forward(*args)
    assert own.any() and all(torch.equal(a[own], b[own]) for a, b in zip((y, s, mask), again, strict=True))


def test_the_formula_is_the_derivative_in_the_adapters_too():
    x, W, b, A, B, *rest = sample("multi_lora_forward", Case(7, 9, 5, 2, 0.4, torch.float64, options={"adapters": 3}))
    leaves = [t.detach().clone().requires_grad_() for t in (x, *A, *B)]

    def op(x, *adapters):
        y, s, _ = torch.ops.pypeft_fast.multi_lora_forward(x, W, b, list(adapters[:3]), list(adapters[3:]), *rest)
        return y, s

    assert torch.autograd.gradcheck(op, leaves)


def test_small_example():
    x, W = torch.ones(4, 1), torch.tensor([[5.0]])
    A, B = [torch.tensor([[2.0]]), torch.tensor([[3.0], [1.0]])], [torch.tensor([[10.0]]), torch.tensor([[100.0, 7.0]])]
    y, s, mask = multi_lora_forward(x, W, None, A, B, torch.tensor([1, -1, 0, 1]), [1.0, 0.5], [0.0, 0.0], None)
    assert y.tolist() == [[158.5], [5.0], [25.0], [158.5]]
    assert s.tolist() == [[3, 1], [0, 0], [2, 0], [3, 1]] and mask.shape == (0, 1)


@pytest.mark.cpu
@pytest.mark.parametrize("rows", [1, 9, 64])
def test_a_cancelled_sum_is_that_of_the_formula(rows):
    x, W, A = torch.full((rows, 8), 1e38), torch.zeros(20, 8), torch.full((2, 8), 0.125)
    opposite, index = torch.tensor([[1.0, -1.0]]).repeat(20, 1), torch.zeros(rows, dtype=torch.int64)
    with pf.using("cpu"):
        y = OPS["multi_lora_forward"](x, W, None, [A], [opposite], index, [16.0], [0.0], None)[0]
    assert not y.any()  # 16 * 1e38 would be infinite
