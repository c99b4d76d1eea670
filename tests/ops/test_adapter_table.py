"""AdapterTable: a call that names a table has the bits of a call that hands the adapters over."""

import concurrent.futures
import gc
import weakref

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
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
    """And no full collection of Python's own, which would take the tables that a test has made."""
    gc.disable()
    try:
        with torch.no_grad():
            yield
    finally:
        gc.enable()


def sampled(case=SMALL):
    """(x, weight, bias, index, seeds; the adapters' lists; y without a table)"""
    args = sample("multi_lora_forward", case)
    x, W, b, A, B, index, scalings, ps, seeds = args
    return (x, W, b, index, seeds), (A, B, scalings, ps), multi_lora_forward(*args)[0]


def table_of(given, adapters):
    """A table after its first two calls: the second one hands the adapters over."""
    table = AdapterTable(*adapters)
    assert table.linear(*given) is None and table._number is None and table.holds()
    assert table.linear(*given) is not None and table._number is not None and table.holds()
    return table


@pytest.mark.parametrize("case", [*MANY, Case(9, 24, 10, 3, 0.0, torch.float16, F32, options={"adapters": 3})], ids=str)
def test_a_call_has_the_bits_of_one_without_a_table(case):
    given, adapters, y = sampled(case)
    table = table_of(given, adapters)
    with pf.recording() as ran:
        found = table.linear(*given)
    assert torch.equal(found, y) and ran == [("multi_lora_forward", "cpu")] and table.holds()


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("N", [0, 8, 250, 257, 520, 801])
@pytest.mark.parametrize("gap", [0, 5])
def test_strips_of_columns_cover_every_column_once(dtype, N, gap):
    """Of one row of an adapter: while a strip is computed, the next one is fetched."""
    torch.manual_seed(0)
    x, W = torch.randint(-2, 3, (5, 40)).to(dtype), torch.zeros(N, 40).to(dtype)
    A = [torch.randint(-1, 2, (r, 40)).to(dtype) for r in (8, 3, 16, 20, 1)]
    B = [torch.randint(-3, 4, (N, len(a) + gap)).to(dtype)[:, : len(a)] for a in A]
    index = torch.tensor([3, 1, 0, 4, 2])
    y, *_ = multi_lora_forward(x, W, None, A, B, index, [1.0] * 5, [0.0] * 5, None)
    for row, a in enumerate(index):
        assert torch.equal(y[row], (x[row].double() @ A[a].double().t() @ B[a].double().t()).to(dtype)), a
    given = x, W, None, index, None
    assert torch.equal(table_of(given, (A, B, [1.0] * 5, [0.0] * 5)).linear(*given), y)


def test_values_of_the_adapters_are_those_of_the_time_of_the_call():
    given, (A, B, scalings, ps), _ = sampled()
    table = table_of(given, (A, B, scalings, ps))
    B[0].mul_(2)
    A[1].data.zero_()
    x, W, b, index, seeds = given
    assert table.holds()
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


def elsewhere(A, B):
    B[1].data = B[1].data.clone()


def negated(A, B):
    """As the imaginary part of a conjugate is: the memory has the values with the other sign."""
    A[0].data = torch._neg_view(A[0].data.clone())


@pytest.mark.parametrize(
    "change", [freed, of_another_dtype, of_another_dtype_last, of_a_dtype_of_the_same_size, longer, elsewhere, negated]
)
def test_a_table_holds_until_a_dtype_or_the_memory_of_a_tensor_changes(change):
    given, (A, B, *numbers), _ = sampled()
    table, new = table_of(given, (A, B, *numbers)), AdapterTable(A, B, *numbers)
    change(A, B)
    assert not table.holds()
    assert new.holds() == (change in (freed, longer, elsewhere, negated))  # with no memory of the library's
    assert (table.linear(*given) is None) == (change not in (elsewhere, negated))


@pytest.mark.parametrize("made", [torch._neg_view, lambda t: torch._efficientzerotensor(t.shape)])
def test_adapters_of_which_pytorch_would_hand_over_copies_are_left_to_the_op(made):
    given, (A, B, *numbers), _ = sampled()
    A[1] = made(A[1])
    table = AdapterTable(A, B, *numbers)
    assert [table.linear(*given) for _ in range(3)] == [None] * 3 and table._number is None


@pytest.mark.parametrize("index", [[0, 1, 2, 3, 0, 0], [0, 1, -2, 0, 0, 0], [0, 1]])
def test_an_index_that_does_not_fit_is_left_to_the_op(index):
    given, adapters, _ = sampled()
    x, W, b, _, seeds = given
    assert table_of(given, adapters).linear(x, W, b, torch.tensor(index), seeds) is None


def test_a_scaling_that_is_no_float_is_left_to_the_op():
    given, (A, B, scalings, ps), y = sampled()
    table = AdapterTable(A, B, [10**400, *scalings[1:]], ps)
    assert [table.linear(*given) for _ in range(3)] == [None] * 3


class Copies(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*tree_map_only(torch.Tensor, torch.clone, args), **(kwargs or {}))


class OfFunctions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*tree_map_only(torch.Tensor, torch.clone, args), **(kwargs or {}))


OTHERS = {
    "another kernel": lambda: pf.using("reference"),
    "a graph": torch.enable_grad,
    "a dispatch mode": Copies,
    "a function mode": OfFunctions,
    "a counter": lambda: FlopCounterMode(display=False),
    "fake tensors": lambda: FakeTensorMode(allow_non_fake_inputs=True),
}


@pytest.mark.parametrize("other", OTHERS)
def test_calls_that_are_not_those_of_the_kernel_for_cpus_are_left_to_the_op(other):
    given, adapters, y = sampled()
    before, after = AdapterTable(*adapters), table_of(given, adapters)
    with OTHERS[other]():
        found = [table.linear(*given) for table in (before, before, after)]
    assert found == [None] * 3 and before._number is None
    assert torch.equal(after.linear(*given), y)


def test_other_activations_are_left_to_the_op():
    given, adapters, _ = sampled()
    table, (x, *rest) = table_of(given, adapters), given
    assert table.linear(x.double(), *rest) is None and table.linear(x.to("meta"), *rest) is None
    assert torch.func.vmap(lambda x: torch.tensor(table.linear(x, *rest) is None))(x[None]).all()
    with pf.using("cpu"):
        assert table.linear(*given) is not None


def test_a_frozen_weight_of_another_shape_is_left_to_the_op():
    given, adapters, y = sampled()
    table, (x, W, b, index, seeds) = table_of(given, adapters), given
    weight = pf.quantize(W, "nf4")
    assert table.linear(x, weight, b, index, seeds).shape == y.shape
    assert table.linear(x, pf.quantize(W[:8], "nf4"), b, index, seeds) is None
    assert table.linear(x.bfloat16(), weight, b.bfloat16(), index, seeds) is None


def test_without_the_library_the_op_is_asked(monkeypatch):
    given, adapters, _ = sampled()
    monkeypatch.setattr(_native, "tables", None)
    table = AdapterTable(*adapters)
    assert [table.linear(*given) for _ in range(3)] == [None] * 3 and table.holds()


def test_a_table_that_is_gone_holds_no_tensor_and_is_refused():
    given, (A, B, *numbers), y = sampled()
    x, W, b, index, seeds = given
    made = [table_of(given, (A, B, *numbers)) for _ in range(3)]
    gone, number = weakref.ref(A[0]), made[1]._number
    del made[1]
    assert all(torch.equal(table.linear(*given), y) for table in made)
    assert not _native.tables.table_holds(number)
    with pytest.raises(RuntimeError, match="the arguments do not fit"):
        adapter_table._linear(x, W, b, number, index, seeds)
    _native.tables.release_table(number)
    made.clear()
    A.clear()
    gc.collect()
    assert gone() is None


def test_a_full_collection_finds_no_table_and_the_next_call_makes_one():
    given, adapters, y = sampled()
    table = table_of(given, adapters)
    numbers = [table._number]
    for generation in (0, 1, 2):
        gc.collect(generation)
        numbers.append(table._number)
    assert numbers[0] == numbers[1] == numbers[2] and numbers[3] is None
    assert not _native.tables.table_holds(numbers[0]) and table.holds()
    assert torch.equal(table.linear(*given), y) and table._number is not None
    references = [reference for reference in adapter_table._tables if reference() is table]
    assert len(references) == 1
    del table
    assert references[0] not in adapter_table._tables


def test_tables_may_go_while_other_threads_call():
    given, adapters, y = sampled()

    def calls(_):
        for _ in range(100):
            assert torch.equal(table_of(given, adapters).linear(*given), y)

    with concurrent.futures.ThreadPoolExecutor(4) as threads, torch.no_grad():
        list(threads.map(torch.no_grad()(calls), range(4)))


def test_numbers_of_tables_are_checked():
    for function in (_native.tables.table_holds, _native.tables.release_table):
        with pytest.raises(TypeError):
            function("1")
        with pytest.raises(OverflowError):
            function(2**70)
    assert not _native.tables.table_holds(-1) and not _native.tables.table_holds(0)


def test_a_derivative_is_refused():
    given, adapters, _ = sampled()
    table, (x, W, b, index, seeds) = table_of(given, adapters), given
    with torch.enable_grad(), pytest.raises(RuntimeError, match="has no derivative"):
        adapter_table._linear(x.requires_grad_(), W, b, table._number, index, seeds)
