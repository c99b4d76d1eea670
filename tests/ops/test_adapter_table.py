"""AdapterTable: a call that names a table has the bits of a call that hands the adapters over."""

import gc
import weakref

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import pypeft_fast as pf
from pypeft_fast import _native
from pypeft_fast.ops import adapter_table
from pypeft_fast.ops.adapter_table import AdapterTable
from pypeft_fast.ops.multi_lora_forward import multi_lora_forward
from pypeft_fast.testing import Case, sample
from tests.ops.test_multi_lora_forward import BF16, F32, MANY

pytestmark = pytest.mark.cpu
SMALL = Case(6, 24, 10, 3, 0.0, options={"adapters": 3})


@pytest.fixture(autouse=True)
def no_graph():
    with torch.no_grad():
        yield


def sampled(case=SMALL):
    """(x, weight, bias, index, seeds; the adapters' lists; y without a table)"""
    args = sample("multi_lora_forward", case)
    x, W, b, A, B, index, scalings, ps, seeds = args
    return (x, W, b, index, seeds), (A, B, scalings, ps), multi_lora_forward(*args)[0]


@pytest.mark.parametrize("case", [*MANY, Case(9, 24, 10, 3, 0.0, torch.float16, F32, options={"adapters": 3})], ids=str)
def test_a_call_has_the_bits_of_one_without_a_table(case):
    given, adapters, y = sampled(case)
    table = AdapterTable.of(*adapters)
    with pf.recording() as ran:
        found = table.linear(*given)
    assert torch.equal(found, y) and ran == [("multi_lora_forward", "cpu")] and table.holds()


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("N", [8, 250, 257, 520, 801])
def test_strips_of_columns_cover_every_column_once(dtype, N):
    """Of one row of an adapter: while a strip is computed, the next one is fetched."""
    torch.manual_seed(0)
    x, W = torch.randint(-2, 3, (5, 40)).to(dtype), torch.zeros(N, 40).to(dtype)
    A = [torch.randint(-1, 2, (r, 40)).to(dtype) for r in (8, 3, 16, 20, 1)]
    B = [torch.randint(-3, 4, (N, len(a))).to(dtype) for a in A]
    index = torch.tensor([3, 1, 0, 4, 2])
    y, *_ = multi_lora_forward(x, W, None, A, B, index, [1.0] * 5, [0.0] * 5, None)
    for row, a in enumerate(index):
        assert torch.equal(y[row], (x[row].double() @ A[a].double().t() @ B[a].double().t()).to(dtype)), a
    assert torch.equal(AdapterTable.of(A, B, [1.0] * 5, [0.0] * 5).linear(x, W, None, index, None), y)


def test_data_of_the_adapters_is_that_of_the_time_of_the_call():
    given, (A, B, scalings, ps), _ = sampled()
    table = AdapterTable.of(A, B, scalings, ps)
    B[0].mul_(2)
    A[1].data = torch.randn_like(A[1])
    A[2].data, B[2].data = torch.ones(1, 24), torch.ones(10, 1)
    x, W, b, index, seeds = given
    assert torch.equal(table.linear(*given), multi_lora_forward(x, W, b, A, B, index, scalings, ps, seeds)[0])


def freed(A, B):
    A[0].untyped_storage().resize_(0)


def of_another_dtype(A, B):
    for adapters in (A, B):
        for t in adapters:
            t.data = t.data.bfloat16()


def of_another_dtype_last(A, B):
    B[-1].data = B[-1].data.double()


def of_a_dtype_of_the_same_size(A, B):
    B[1].data = B[1].data.view(torch.int32)


def longer(A, B):
    A[1].data = torch.randn(4, 24)


@pytest.mark.parametrize(
    "change", [freed, of_another_dtype, of_another_dtype_last, of_a_dtype_of_the_same_size, longer]
)
def test_a_table_holds_until_a_dtype_or_a_storage_changes(change):
    given, (A, B, *numbers), _ = sampled()
    table = AdapterTable.of(A, B, *numbers)
    assert table.holds()
    change(A, B)
    assert not table.holds() and (change is of_another_dtype or table.linear(*given) is None)


@pytest.mark.parametrize("index", [[0, 1, 2, 3, 0, 0], [0, 1, -2, 0, 0, 0], [0, 1]])
def test_an_index_that_does_not_fit_is_left_to_the_op(index):
    (x, W, b, _, seeds), adapters, _ = sampled()
    assert AdapterTable.of(*adapters).linear(x, W, b, torch.tensor(index), seeds) is None


def test_calls_that_are_none_of_the_kernel_for_cpus_are_left_to_the_op():
    given, adapters, y = sampled()
    table, x = AdapterTable.of(*adapters), given[0]
    with pf.using("reference"):
        assert table.linear(*given) is None
    with pf.using("cpu"):
        assert torch.equal(table.linear(*given), y)
    with torch.enable_grad():
        assert table.linear(*given) is None
    with FlopCounterMode(display=False):
        assert table.linear(*given) is None
    assert table.linear(x.double(), *given[1:]) is None
    assert torch.func.vmap(lambda x: torch.tensor(table.linear(x, *given[1:]) is None))(x[None]).all()


def test_a_frozen_weight_of_another_shape_is_left_to_the_op():
    (x, W, b, index, seeds), adapters, y = sampled()
    table, weight = AdapterTable.of(*adapters), pf.quantize(W, "nf4")
    assert table.linear(x, weight, b, index, seeds).shape == y.shape
    assert table.linear(x, pf.quantize(W[:8], "nf4"), b, index, seeds) is None
    assert table.linear(x.bfloat16(), weight, b.bfloat16(), index, seeds) is None


def test_without_the_library_or_on_another_device_there_is_no_table(monkeypatch):
    _, (A, B, *numbers), _ = sampled()
    assert AdapterTable.of([t.to("meta") for t in A], [t.to("meta") for t in B], *numbers) is None
    monkeypatch.setattr(_native, "tables", None)
    assert AdapterTable.of(A, B, *numbers) is None


def test_a_table_that_is_gone_holds_no_tensor_and_is_refused():
    (x, W, b, index, seeds), (A, B, *numbers), y = sampled()
    made = [AdapterTable.of(A, B, *numbers) for _ in range(3)]
    gone, number = weakref.ref(A[0]), made[1]._number
    del made[1]
    for table in made:
        assert torch.equal(table.linear(x, W, b, index, seeds), y)
    assert not _native.tables.table_holds(number)
    with pytest.raises(RuntimeError, match="the arguments do not fit"):
        adapter_table._linear(x, W, b, number, index, seeds)
    _native.tables.release_table(number)
    made.clear()
    A.clear()
    del table
    gc.collect()
    assert gone() is None


def test_numbers_of_tables_are_checked():
    for function in (_native.tables.table_holds, _native.tables.release_table):
        with pytest.raises(TypeError):
            function("1")
        with pytest.raises(OverflowError):
            function(2**70)
    assert not _native.tables.table_holds(-1) and not _native.tables.table_holds(0)


def test_a_derivative_is_refused():
    (x, W, b, index, seeds), adapters, _ = sampled()
    table = AdapterTable.of(*adapters)
    with torch.enable_grad(), pytest.raises(RuntimeError, match="has no derivative"):
        adapter_table._linear(x.requires_grad_(), W, b, table._number, index, seeds)
