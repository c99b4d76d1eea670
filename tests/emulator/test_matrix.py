"""The matrix instructions compared with the tables of the PTX manual.

Section 9.7, "Matrix Fragments for mma.m16n8k16", "mma.m16n8k8" and "ldmatrix". The tables are written here element by
element, independently of the emulator.
"""

import pytest
import torch

from tests.emulator.run import const, run

LANES = range(32)


def groups(lane):
    return lane >> 2, lane % 4


def a_16816(lane, i):
    """(row, column) of element i of the fragment of A. The elements are the halves of the registers, low half first."""
    group, thread = groups(lane)
    row = group if i < 2 or 4 <= i < 6 else group + 8
    return row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)


def b_16816(lane, i):
    group, thread = groups(lane)
    return thread * 2 + (i & 1) + (8 if i >= 2 else 0), group


def a_1688(lane, i):
    group, thread = groups(lane)
    return (group if i in (0, 2) else group + 8), (thread if i in (0, 1) else thread + 4)


def b_1688(lane, i):
    group, thread = groups(lane)
    return (thread if i == 0 else thread + 4), group


def c_168(lane, i):
    group, thread = groups(lane)
    return (group if i < 2 else group + 8), thread * 2 + (i & 1)


def spread(matrix, table, elements):
    """The fragments [32, elements] of all lanes."""
    return torch.stack([torch.stack([matrix[table(lane, i)] for i in range(elements)]) for lane in LANES])


def gather(fragments, table, rows, columns):
    matrix = torch.full((rows, columns), torch.nan)
    for lane in LANES:
        for i in range(fragments.shape[1]):
            matrix[table(lane, i)] = fragments[lane, i]
    return matrix


@pytest.mark.parametrize("program,dtype", [("mma_bf16", torch.bfloat16), ("mma_f16", torch.float16)])
def test_mma_16816(program, dtype):
    A, B = (torch.randint(-8, 9, shape).to(dtype) for shape in [(16, 16), (16, 8)])  # every sum is exact
    C = torch.randint(-99, 99, (16, 8)).float()
    c = spread(C, c_168, 4)
    run(program, const(spread(A, a_16816, 8)), const(spread(B, b_16816, 4)), c)
    assert torch.equal(gather(c, c_168, 16, 8), A.float() @ B.float() + C)


@pytest.mark.parametrize("wrong", [(0, 2), (2, 4), (1, 0)])
def test_a_wrong_fragment_index_shows(wrong):
    A, B, C = torch.randn(16, 16).half(), torch.randn(16, 8).half(), torch.zeros(32, 4)
    order = list(range(8))
    order[wrong[0]], order[wrong[1]] = wrong[1], wrong[0]
    run("mma_f16", const(spread(A, a_16816, 8)[:, order].contiguous()), const(spread(B, b_16816, 4)), C)
    assert not torch.allclose(gather(C, c_168, 16, 8), A.float() @ B.float(), atol=0.1)


def test_mma_1688_tf32_ignores_the_low_bits():
    A, B = torch.randint(-8, 9, (16, 8)).float(), torch.randint(-8, 9, (8, 8)).float()
    C = torch.randint(-99, 99, (16, 8)).float()
    noisy = (A.view(torch.int32) | torch.randint(0, 1 << 13, A.shape, dtype=torch.int32)).view(torch.float32)
    noisy[A == 0] = 0
    c = spread(C, c_168, 4)
    run("mma_tf32", const(spread(noisy, a_1688, 4)), const(spread(B, b_1688, 2)), c)
    assert torch.equal(gather(c, c_168, 16, 8), A @ B + C)


def test_rounding_to_tf32_is_to_the_nearest_with_ties_away_from_zero():
    step = 2.0**-10
    x = torch.tensor([1, 1 + step / 2, 1 + step / 4, -1 - step / 2, torch.inf, 3e38, 0.0, 1e-40])
    y = torch.empty(8)
    run("round_to_tf32", x, y, 8)
    assert y[:5].tolist() == [1, 1 + step, 1, -1 - step, torch.inf] and y[6] == 0
    assert not (y.view(torch.int32) & 0x1FFF).any()
    torch.testing.assert_close(y[5], x[5], rtol=step, atol=0)


@pytest.mark.parametrize("matrices,transposed", [(4, False), (4, True), (2, False), (2, True)])
def test_ldmatrix(matrices, transposed):
    x = torch.arange(32 * 8, dtype=torch.int16).view(4, 8, 8)  # four matrices of eight rows
    out = torch.zeros(32, 4, 2, dtype=torch.int16)
    run("ldmatrix", const(x), out, matrices, transposed)
    for lane in LANES:
        group, thread = groups(lane)
        for m in range(matrices):
            source = x[m].t() if transposed else x[m]
            assert out[lane, m].tolist() == source[group, 2 * thread : 2 * thread + 2].tolist()


MATMUL_BUGS = {
    1: "ldmatrix at byte .* to which a cp.async is still under way",  # no wait
    2: "race: ldmatrix|still under way|which nobody wrote",  # no barrier after it
    3: "race: cp.async at byte .* which another thread reads|still under way",  # none before the next copy
}


def test_matmul_on_tensor_cores():
    x, w = torch.randn(64, 96).bfloat16(), torch.randn(64, 96).bfloat16()
    truth, y = x.double() @ w.double().t(), torch.empty(64, 64)
    for seed in range(20):
        run("matmul", const(x), const(w), y.fill_(torch.nan), 96, 0, seed=seed)
        torch.testing.assert_close(y.double(), truth, rtol=1e-5, atol=1e-4)
        for bug, words in MATMUL_BUGS.items():
            with pytest.raises(RuntimeError, match=words):
                run("matmul", const(x), const(w), y, 96, bug, seed=seed)
    for bug in (4, 5):  # a wrong row for ldmatrix, two registers of a fragment exchanged
        run("matmul", const(x), const(w), y, 96, bug)
        assert not torch.allclose(y.double(), truth, atol=1)
