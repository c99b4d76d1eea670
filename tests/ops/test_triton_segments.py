"""Triton kernels for rows of several adapters: groups of rows, slots, the table of adapters, launches, traffic."""

from unittest import mock

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.ops import _triton
from pypeft_fast.testing import Case, assert_agrees, sample
from tests.device import ON_GPU

if _triton.why_no_triton() is not None or ON_GPU:
    pytest.skip("needs Triton's interpreter", allow_module_level=True)

import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

from pypeft_fast.kernels import _adapters, _segments, _tiles  # noqa: E402
from pypeft_fast.testing import triton_accesses  # noqa: E402

FORWARD, BACKWARD = OPS["multi_lora_forward"], OPS["multi_lora_backward"]
F32, BF16 = torch.float32, torch.bfloat16
SHRINK, LINEAR, DS_DB, DX, DA = (f"_multi_{name}" for name in ("shrink", "linear", "ds_db", "dx", "da"))


def launches(op, args, beside=None):
    with pf.using("triton"), triton_accesses.traced(beside) as launched:
        op(*args)
    return launched


def names(op, args):
    """The names of the kernels that the op launches; the kernels do not run."""
    launched = []
    with mock.patch.object(
        interpreter.GridExecutor, "__call__", lambda kernel, *_, **__: launched.append(kernel.fn.__name__)
    ):
        with pf.using("triton"):
            op(*args)
    return launched


@pytest.mark.parametrize("M,n", [(1, 1), (5, 3), (64, 64), (130, 2), (200, 9)])
@pytest.mark.parametrize("chunk", [16, 4096])
def test_rows_are_grouped_by_adapter_in_the_order_of_the_batch(M, n, chunk, monkeypatch, poisoned):
    monkeypatch.setattr(_segments, "CHUNK", chunk)
    index = torch.randint(-1, n, (2 * M,))[::2]
    order, starts = _segments.grouped(index, n)
    assert order.tolist() == torch.sort(index, stable=True).indices.tolist()
    assert starts.tolist() == [0, *(int((index < a).sum()) for a in range(n)), M]


def test_a_number_that_no_adapter_has_is_no_adapter():
    """On a GPU the numbers are not checked: such a row gets the frozen layer's result, and no other memory is read."""
    index = torch.tensor([0, 7, -5, 2, 2**40])
    order, starts = _segments.grouped(index, 3)
    assert order.tolist() == [1, 2, 4, 0, 3] and starts.tolist() == [0, 3, 4, 4, 5]


@triton.jit
def _every_part(starts_ptr, out_ptr, n, L, GROUPS: tl.constexpr):
    slot = tl.program_id(0)
    adapter, part, first, end = _segments.part_of(slot, starts_ptr, n, L, GROUPS)
    tl.store(out_ptr + slot * 5, adapter)
    tl.store(out_ptr + slot * 5 + 1, part)
    tl.store(out_ptr + slot * 5 + 2, first)
    tl.store(out_ptr + slot * 5 + 3, end)
    tl.store(out_ptr + slot * 5 + 4, _segments.first_partial(first, L) + part)


@pytest.mark.parametrize("L", [1, 4, 16, 64])
@pytest.mark.parametrize(
    "counts", [[0, 5], [3, 0, 0], [0, 16, 16, 0, 1], [7, 1, 1, 1, 40, 0, 64], [0] * 9, [15, 17, 31, 33, 2]], ids=str
)
def test_every_part_of_every_group_has_a_slot_and_a_partial_sum_of_its_own(counts, L):
    """Also a group without rows has a slot for its part 0, in which its gradients become zero. A group with one part
    needs no partial sum."""
    n, M = len(counts) - 1, sum(counts)
    starts = torch.tensor([sum(counts[:g]) for g in range(n + 2)], dtype=torch.int32)
    slots = _segments.slots(M, n, L)
    out = torch.empty(slots, 5, dtype=torch.int32)
    _every_part[(slots,)](starts, out, n, L, GROUPS=_segments.groups(n))
    found, partials = set(), []
    for adapter, part, first, end, partial in out.tolist():
        assert (first, end) == (starts[adapter + 1], starts[adapter + 2])
        if part == 0 or first + part * L < end:
            assert (adapter, part) not in found
            found.add((adapter, part))
            partials += [partial] if end - first > L else []
    assert len(set(partials)) == len(partials) and max(partials, default=-1) < max(1, _segments.partials(M, L))
    assert found == {(g - 1, i) for g, c in enumerate(counts) for i in range(max(1, _tiles.cdiv(c, L)))}


@pytest.mark.parametrize("n", [1, 8, 64])
def test_the_number_of_launches_does_not_depend_on_the_number_of_adapters(n, monkeypatch):
    """The rows are grouped in one launch each way. The table of the adapters' addresses is kept for later calls."""
    monkeypatch.setattr(_adapters, "_tables", _adapters.OrderedDict())
    case = Case(9, 24, 17, 3, 0.3, options={"adapters": n})
    args = sample("multi_lora_forward", case)
    assert names(FORWARD, args) == ["_write_adapter"] * n + ["_group_rows", SHRINK, LINEAR]
    assert names(FORWARD, args) == ["_group_rows", SHRINK, LINEAR]
    dY, _, _, _, _, _, s, mask, *_ = sample("multi_lora_backward", case)
    x, W, _, A, B, index, scalings, ps, _ = args
    back = (dY, x, W, A, B, index, s, mask, scalings, ps, True, True, True)
    assert names(BACKWARD, back) == ["_group_rows", DS_DB, DX, DA]
    other = (*args[:6], [*scalings[:-1], 2 * scalings[-1]], *args[7:])
    assert names(FORWARD, other)[:n] == ["_write_adapter"] * n


def test_the_adapters_and_x_and_w_are_read_once_for_each_block_of_rows():
    """s: x once, A once for each block of rows of its adapter; y: x and W once, B once for each tile that has rows of
    its adapter."""
    case = Case(130, 40, 48, 4, 0.3, options={"adapters": 3})
    args = sample("multi_lora_forward", case)
    x, W, _, A, B, index, *_ = args
    beside = {f"{name}[{a}]": t for name, ts in (("A", A), ("B", B)) for a, t in enumerate(ts)}
    size = {name: t.numel() * t.element_size() for name, t in beside.items()}
    *_, shrink, linear = launches(FORWARD, args, beside)
    with_adapter = int((index >= 0).sum())
    assert shrink.outside == [] and linear.outside == []
    assert shrink.loaded["x_ptr"] == with_adapter * x.shape[1] * 4
    assert linear.once["x"] == x.numel() * 4 and linear.once["w"] == W.numel() * 4
    rows = _tiles.shrunk(_tiles.default("lora_shrink", "interpreter", 32).BM, _tiles.cdiv(130, 3))
    for a in range(3):
        count = int((index == a).sum())
        assert shrink.loaded[f"A[{a}]"] == _tiles.cdiv(count, rows) * size[f"A[{a}]"]
        tiles = sum(bool((index[m : m + 64] == a).any()) for m in range(0, 130, 64))  # each has all of B in two tiles
        assert linear.loaded[f"B[{a}]"] == tiles * size[f"B[{a}]"]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("M", [60, 150])  # the rows of a decoding batch, and more
@pytest.mark.parametrize("dtype,adapter", [(F32, None), (BF16, None), (BF16, F32)])
def test_the_other_rows_do_not_change_a_bit_of_an_adapters_results(M, dtype, adapter):
    case = Case(M, 50, 40, 5, 0.3, dtype, adapter, options={"adapters": 4})
    forward, backward = list(sample("multi_lora_forward", case)), list(sample("multi_lora_backward", case))
    own = forward[5] == 1
    with pf.using("triton"):
        y, s, mask = FORWARD(*forward)
        dX, dA, dB = BACKWARD(*backward)
        index = torch.where(own, 1, torch.where(forward[5] == 0, 2, -1))
        forward[5] = backward[5] = index
        apart = own.unsqueeze(1)
        forward[0] = torch.where(apart, forward[0], float("nan"))
        backward[0], backward[1] = (torch.where(apart, t, float("inf")) for t in backward[:2])
        again, gradients = FORWARD(*forward), BACKWARD(*backward)
    assert own.any() and all(torch.equal(a[own], b[own]) for a, b in zip((y, s, mask), again, strict=True))
    assert torch.equal(dX[own], gradients[0][own])
    assert torch.equal(dA[1], gradients[1][1]) and torch.equal(dB[1], gradients[2][1])


@pytest.mark.parametrize("name", ["multi_lora_forward", "multi_lora_backward"])
@pytest.mark.parametrize("n", [2, 3])
def test_adapters_with_several_stripes_and_blocks(name, n, poisoned):
    assert_agrees(name, "triton", Case(300, 24, 20, 5, 0.3, options={"adapters": n}))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_infinity_in_one_adapter_does_not_leak_into_the_tiles_other_rows(bad):
    """With more rows than a decoding batch, forward, and backward in dX."""
    case = Case(90, 33, 49, 3, 0.3, options={"adapters": 4})
    forward, backward = list(sample("multi_lora_forward", case)), list(sample("multi_lora_backward", case))
    others = forward[5] != 1
    with pf.using("triton"):
        y, dX = FORWARD(*forward)[0], BACKWARD(*backward)[0]
        for args in (forward, backward):
            for i in (3, 4):
                args[i] = [t.clone() for t in args[i]]
                args[i][1].fill_(bad)
        spoiled, spoiled_dX = FORWARD(*forward)[0], BACKWARD(*backward)[0]
    assert not spoiled[~others].isfinite().any() and torch.equal(spoiled[others], y[others])
    assert not spoiled_dX[~others].isfinite().all() and torch.equal(spoiled_dX[others], dX[others])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_s_is_zero_beyond_an_adapters_rank_where_x_is_infinite():
    args = list(sample("multi_lora_forward", Case(40, 33, 49, 4, 0.0, options={"adapters": 4})))
    args[0][:] = float("inf")
    with pf.using("triton"):
        _, s, _ = FORWARD(*args)
    for a, A in enumerate(args[3]):
        own = s[args[5] == a]
        assert not own[:, : A.shape[0]].isfinite().any() and not own[:, A.shape[0] :].any()
    assert not s[args[5] < 0].any()


def adapters(scaling=1.0, ranks=(4, 8)):
    A, B = [torch.randn(r, 16) for r in ranks], [torch.randn(24, r) for r in ranks]
    return (A, B, [scaling] * len(ranks), [-1] * len(ranks), [1.0] * len(ranks)), A, B


def test_the_table_has_the_adapters_addresses_and_values():
    args, A, B = adapters(1.5)
    found = _adapters.adapters(*args)
    row = found.table[1].tolist()
    assert row[:7] == [A[1].data_ptr(), 16, 1, B[1].data_ptr(), 8, 1, 8] and row[8] == -1
    assert torch.tensor([row[7], row[9]]).int().view(F32).tolist() == [1.5, 1.0]
    assert (found.align_A, found.align_B, found.step) == (16, 16, 4)
    apart = [t.t().contiguous().t() for t in A], [torch.randn(24, 9)[:, 1 : 1 + t.shape[1]] for t in B]
    found = _adapters.adapters(*apart, *args[2:])
    assert (found.align_A, found.align_B) == (0, 4)


def test_tables_that_are_not_used_are_freed(monkeypatch):
    monkeypatch.setattr(_adapters, "_tables", _adapters.OrderedDict())
    monkeypatch.setattr(_adapters, "MOST_TABLES", 2)
    first, second, third = (adapters(scaling)[0] for scaling in (1.0, 2.0, 3.0))
    kept = [_adapters.adapters(*args) for args in (first, second)]
    assert _adapters.adapters(*first) is kept[0]
    _adapters.adapters(*third)
    assert _adapters.adapters(*first) is kept[0] and _adapters.adapters(*second) is not kept[1]


def test_a_captured_graph_keeps_its_table(monkeypatch):
    """A graph uses a table that is already there, on whatever stream, or writes one that only this graph uses."""
    monkeypatch.setattr(_adapters, "_tables", _adapters.OrderedDict())
    monkeypatch.setattr(_adapters, "_captured", {})
    args, A, B = adapters()
    known = _adapters.adapters(*args)
    ((_, values),) = _adapters._tables
    assert _adapters._in_capture(values, A, B, known.table.shape) is known
    assert list(_adapters._captured.values()) == [known]
    others, A, B = adapters()
    each = zip(A, B, (4, 8), strict=True)
    values = (*values[:3], *((a.data_ptr(), 16, 1, b.data_ptr(), *b.stride(), r, 1.0, -1, 1.0) for a, b, r in each))
    own = _adapters._in_capture(values, A, B, known.table.shape)
    assert own.table[0, 0] == A[0].data_ptr() and len(_adapters._tables) == len(_adapters._captured) == 1


def test_the_backward_op_has_no_cuda_kernel_and_says_so():
    with (
        pf.using("cuda"),
        pytest.raises(RuntimeError, match="the op has no such kernel. This op has: triton, cpu, blas"),
    ):
        BACKWARD(*sample(BACKWARD.name, Case()))
