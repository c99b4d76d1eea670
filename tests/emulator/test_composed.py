"""lora_forward and lora_backward in C++ for CUDA: the bits and launches of their parts, and the check of arguments."""

import itertools

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.testing import Case, sample
from pypeft_fast.testing.cases import FORMATS
from tests import emulator
from tests.emulator.launches import DTYPES
from tests.ops import test_lora_backward, test_lora_forward
from tests.ops.rejections import CASE

F32, BF16 = torch.float32, torch.bfloat16
NAMES = ("lora_forward", "lora_backward")
NEEDS = [n for n in itertools.product((True, False), repeat=3) if any(n)]


@pytest.fixture(autouse=True)
def _loaded():
    """On sm_90 decoding overlaps with shrink; the parts alone never overlap."""
    with emulator.loaded(), emulator.capability(90):
        yield
    emulator.configure()


def in_parts(op, args):
    """(the outputs of the op's parts, which run with their kernels "cuda"; the parts' names)"""
    with pf.using("cuda"), pf.recording() as ran, torch.no_grad():
        outputs = OPS[op]._parts(*args)
    assert {kernel for _, kernel in ran} == {"cuda"}
    return outputs, [name for name, _ in ran]


def as_one(op, args):
    with pf.using("cuda"), pf.recording() as ran, torch.no_grad():
        outputs = OPS[op](*args)
    assert ran == [(op, "cuda")]
    return outputs


def assert_same_bits(op, args):
    torch.testing.assert_close(as_one(op, args), in_parts(op, args)[0], rtol=0, atol=0)


@pytest.mark.parametrize("op", NAMES)
@pytest.mark.parametrize("dtype,adapter", DTYPES)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_the_bits_are_those_of_the_parts(op, dtype, adapter, p, poisoned):
    for (M, r), layout in itertools.product([(0, 4), (1, 5), (16, 5), (70, 20)], ("contiguous", "strided")):
        assert_same_bits(op, sample(op, Case(M, 72, 40, r, p, dtype, adapter, layout)))


@pytest.mark.parametrize("op", NAMES)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype,adapter", [(BF16, None), (BF16, F32), (F32, None)])
def test_the_bits_over_a_quantised_weight_are_those_of_the_parts(op, format, dtype, adapter, poisoned):
    for M in (3, 40):  # few rows are multiplied with 4-bit codes
        assert_same_bits(op, sample(op, Case(M, 96, 40, 5, 0.3, dtype, adapter, format=format)))


@pytest.mark.parametrize("needs", NEEDS, ids=str)
def test_gradients_that_are_not_needed_take_no_launch(needs, poisoned):
    args = sample("lora_backward", Case(20, 72, 40, 5, 0.3, options={"needs": needs}))
    assert_same_bits("lora_backward", args)
    need_dX, need_dA, _ = needs
    with pf.using("cuda"), emulator.counting() as counted:
        OPS["lora_backward"](*args)
    assert counted().launches == 1 + need_dX + need_dA == len(in_parts("lora_backward", args)[1])


@pytest.mark.parametrize("format,launches", [("dense", 2), ("nf4", 2), ("int8", 3)])
def test_decoding_takes_two_launches_and_one_more_to_dequantise(format, launches):
    args = sample("lora_forward", Case(1, 96, 40, 5, dtype=BF16, format=format))
    with pf.using("cuda"), emulator.counting() as counted:
        OPS["lora_forward"](*args)
    assert counted().launches == launches


def overlapping(M, format="dense", p=0.0, **gpu):
    """How many launches of lora_forward overlap with the one before, of two or, with a dequantised weight, three."""
    args = sample("lora_forward", Case(M, 96, 40, 5, p, BF16, F32, format=format))
    expected, _ = in_parts("lora_forward", args)
    found = set()
    for seed in range(5):  # of the schedule
        with pf.using("cuda"), emulator.capability(**gpu), emulator.counting(seed) as counted:
            torch.testing.assert_close(OPS["lora_forward"](*args), expected, rtol=0, atol=0)
        found.add(counted().overlapping)
    (count,) = found
    return count


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("format,expected", [("dense", 1), ("nf4", 1), ("fp4, 64", 1), ("int8", 0)])
def test_decoding_overlaps_with_shrink_unless_a_launch_dequantises_between_them(format, expected, p):
    for M in (1, 8, 16):
        assert overlapping(M, format, p, own=90) == expected


@pytest.mark.parametrize("gpu,expected", [
    (dict(own=80), 0), (dict(own=89), 0), (dict(own=120), 1), (dict(own=103, ptx=80), 0), (dict(own=103, ptx=90), 1),
    (dict(own=90, driver=12020), 0), (dict(own=90, driver=12030), 1),
])  # fmt: skip
def test_only_code_of_sm_90_and_later_under_cuda_12_3_overlaps(gpu, expected):
    assert overlapping(4, **gpu) == expected


def test_a_product_of_many_rows_does_not_overlap():
    assert overlapping(17, own=90) == 0


@pytest.mark.parametrize("leading", [(), (1,), (3,), (1, 1), (2, 3), (2, 0)], ids=str)
@pytest.mark.parametrize("gap", [0, 8])
def test_any_number_of_dimensions_and_any_strides(leading, gap):
    """With a gap after each row, x is no whole piece of memory."""
    x, W, A, B = (torch.randn(shape) for shape in ((*leading, 24 + gap), (10, 24), (3, 24), (10, 3)))
    x = x[..., :24].requires_grad_()
    leaves = [x, A.requires_grad_(), B.requires_grad_()]

    def step():
        y = pf.lora_linear(x, W, A, B, scaling=0.5)
        return y, *torch.autograd.grad(y, leaves, torch.ones_like(y))

    with pf.using("cuda"), pf.recording() as ran:
        found = step()
    assert [name for name, _ in ran] == ["lora_forward", "lora_backward"]
    assert found[0].shape == (*leading, 10) and found[1].shape == x.shape
    with pf.using("reference"):
        torch.testing.assert_close(found, step())


def test_allow_tf32_reaches_the_launches():
    matmul = torch.backends.cuda.matmul
    before, args = matmul.fp32_precision, {op: sample(op, Case(70, 72, 40, 5, 0.3)) for op in NAMES}
    found = {}
    try:
        for matmul.fp32_precision in ("ieee", "tf32"):
            found[matmul.fp32_precision] = {op: as_one(op, args[op]) for op in NAMES}
            for op in NAMES:
                assert_same_bits(op, args[op])
    finally:
        matmul.fp32_precision = before
    for op in NAMES:
        assert not torch.equal(found["ieee"][op][0], found["tf32"][op][0])


def test_a_graph_is_captured_without_a_synchronisation():
    for op in NAMES:
        args = sample(op, Case(5, 328, 520, 3, 0.3, BF16))  # every sum has several parts, and needs tickets
        emulator.configure(multiprocessors=132)
        eager = as_one(op, args)
        with emulator.capturing():
            torch.testing.assert_close(as_one(op, args), eager, rtol=0, atol=0)


def refused(test):
    """The calls that `test` expects to be refused: [(index of an argument, its value, the error, its words)]."""
    return next(mark.args[1] for mark in test.pytestmark if mark.name == "parametrize")


BAD = [(op, *row) for op, file in zip(NAMES, (test_lora_forward, test_lora_backward), strict=True)
       for row in refused(file.test_rejects)]  # fmt: skip


def plain(op):
    """The C++ op, called without Python's checks, as Op.__call__ calls it for tensors on a GPU."""
    return lambda *args: getattr(torch.ops.pypeft_fast, f"{op}_cuda")(*args, False)


@pytest.mark.parametrize("op", NAMES)
def test_the_check_in_cpp_accepts_what_fits(op, poisoned):
    args = sample(op, CASE)
    torch.testing.assert_close(plain(op)(*args), as_one(op, args), rtol=0, atol=0)


@pytest.mark.parametrize("op,index,value,error,words", BAD, ids=lambda v: v if isinstance(v, str) else None)
def test_the_check_in_cpp_refuses_what_the_check_in_python_refuses(op, index, value, error, words):
    args = list(sample(op, CASE))
    args[index] = value(args[index]) if callable(value) else value
    with pytest.raises(RuntimeError, match="pypeft_fast: the arguments do not fit"):
        plain(op)(*args)


def stored(format, **spoiled):
    """(x, codes, ..., format, scales) of a forward pass, of which `spoiled` replaces some tensors of the weight."""
    x, weight, *rest = sample("lora_forward", Case(6, 32, 10, 3, 0.3, format=format))
    tensors = dict(zip(weight.names(), weight.tensors, strict=True))
    for name, spoil in spoiled.items():
        tensors[name] = spoil(tensors[name])
    first, *scales = tensors.values()
    return x, first, *rest, False, weight.format, scales


@pytest.mark.parametrize(
    "format,name,spoil",
    [
        ("nf4", "codes", lambda t: t[1:]),
        ("nf4", "codes", lambda t: t.char()),
        ("nf4", "absmax", lambda t: t[1:]),
        ("nf4", "absmax", lambda t: t.float()),
        ("nf4", "nested_absmax", lambda t: t.repeat(2)),
        ("nf4", "nested_absmax", lambda t: t.double()),
        ("nf4", "nested_map", lambda t: t[1:]),
        ("nf4", "offset", lambda t: t.repeat(2)),
        ("fp4, 64", "absmax", lambda t: t.half()),
        ("fp4, 64", "absmax", lambda t: t.repeat(2)[::2]),
        ("int8", "weight", lambda t: t[1:]),
        ("int8", "weight", lambda t: t.t().contiguous().t()),
        ("int8", "scale", lambda t: t[1:]),
        ("fp8", "weight", lambda t: t.view(torch.int8)),
        ("fp8", "scale", lambda t: t[1:]),
    ],
)
def test_the_check_in_cpp_refuses_tensors_that_are_no_weight_of_their_format(format, name, spoil):
    op = torch.ops.pypeft_fast.lora_forward_cuda
    op(*stored(format))
    with pytest.raises(RuntimeError, match="pypeft_fast: the arguments do not fit"):
        op(*stored(format, **{name: spoil}))


def test_a_format_that_cpp_does_not_know_is_refused():
    x, codes, *rest, _, scales = stored("nf4")
    with pytest.raises(RuntimeError, match="pypeft_fast: the arguments do not fit"):
        torch.ops.pypeft_fast.lora_forward_cuda(x, codes, *rest, "nf5", scales)


@pytest.mark.parametrize("op", NAMES)
def test_a_plain_call_goes_directly_to_cpp_and_a_refused_one_to_the_full_error(op, monkeypatch):
    """As on a GPU, which the emulator's tensors are not: the kernel takes the place of the one for CPUs."""
    calls, args = [], sample(op, CASE)
    monkeypatch.setattr(OPS[op], "_direct", {"cpu": lambda *args: calls.append(op) or plain(op)(*args)})
    with torch.no_grad():
        torch.testing.assert_close(OPS[op](*args), as_one(op, args), rtol=0, atol=0)
        assert calls == [op]
        bad = list(args)
        bad[4] = bad[4][:, 1:]
        with pytest.raises(ValueError, match="shape"):
            OPS[op](*bad)
    assert calls == [op] * 2
