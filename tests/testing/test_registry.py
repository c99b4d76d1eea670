"""The registry: its entries and variants of every op, and that it needs neither pytest nor PEFT."""

import pytest
import torch

from pypeft_fast._op import OPS
from pypeft_fast.testing import CASES, EAGER, ENTRIES, SPOILED, TYPICAL, VARIANTS, Case, cut, felt, sample
from tests.interpreter import python


def test_every_op_has_an_entry_under_its_name():
    assert set(ENTRIES) == set(EAGER) == set(OPS)
    assert all(entry.op is OPS[op] and "" in entry.variants for op, entry in ENTRIES.items())


def test_a_variant_is_named_after_its_op():
    assert {title.partition(",")[0] for title in VARIANTS} == set(OPS) and set(SPOILED) == set(VARIANTS)
    assert VARIANTS["lora_linear, scale"] == ("lora_linear", {"scale": True})
    assert all(title.partition(",")[0] == op and all(SPOILED[title]) for title, (op, _) in VARIANTS.items())


@pytest.mark.parametrize("op", OPS)
def test_a_sample_follows_the_draw_and_the_check_accepts_it(op):
    first, again, other = (sample(op, TYPICAL, draw) for draw in (0, 0, 1))
    OPS[op].check_arguments(*first)
    floats = [i for i, a in enumerate(first) if isinstance(a, torch.Tensor) and a.is_floating_point()]
    assert all(torch.equal(first[i], again[i]) and not torch.equal(first[i], other[i]) for i in floats)


def test_samples_on_meta_take_no_memory_and_have_the_same_shapes():
    for op in OPS:
        with torch.device("meta"):
            large = sample(op, Case(2**20, 2**20, 2**20, p=0.1))
            small = sample(op, TYPICAL)
        assert all(a.is_meta for a in large if isinstance(a, torch.Tensor))
        for a, b in zip(small, sample(op, TYPICAL), strict=True):
            assert not isinstance(a, torch.Tensor) or (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_a_case_is_cut_to_what_a_kernel_takes():
    case = Case(40, p=0.3)
    for op, entry in ENTRIES.items():
        for kernel in OPS[op].kernels:
            limited = kernel.name in entry.limits
            assert limited == ((op, kernel.name) == ("multi_lora_forward", "cuda"))
            assert (cut(op, kernel.name, case) == case) == (not limited)
            assert kernel.rejects(*sample(op, cut(op, kernel.name, case))) is None or kernel.name.startswith("triton")
    assert (cut("multi_lora_forward", "cuda", case).M, cut("multi_lora_forward", "cuda", case).p) == (16, 0.0)
    few = Case(3, options={"adapters": 8})
    assert cut("multi_lora_forward", "cuda", few) == few


def test_mutants_that_change_nothing_for_a_kernel_are_left_out():
    every = list(SPOILED["multi_lora_forward"])
    assert felt("multi_lora_forward", "triton") == every
    assert set(every) - set(felt("multi_lora_forward", "cuda")) == {"no dropout", "one seed for all"}


def test_an_op_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="op_name='lora_up' has no sample arguments; ops with samples are .*lora_da"):
        sample("lora_up", TYPICAL)


def test_cases_have_names_of_their_own():
    assert len({str(case) for case in CASES}) == len(CASES)
    assert str(Case(dtype=torch.bfloat16, adapter=torch.float32, bias=False, options={"need_z": False})) == (
        "5x24x17-r3-p0.0-bfloat16+float32-contiguous-nobias-need_z=False"
    )


def test_the_registry_needs_no_pytest_and_no_peft():
    """It needs only PyTorch and this package, and one import registers all ops."""
    code = (
        "import sys; import pypeft_fast.testing as t\n"
        "print(sorted({'pytest', 'peft', 'transformers', 'triton', 'tests', 'bench'} & set(sys.modules)))\n"
        "t.assert_agrees('swiglu', lambda gate, up: t.EAGER['swiglu'](gate, up), t.TYPICAL)"
    )
    done = python("-c", code)
    assert done.returncode == 0 and done.stdout == "[]\n", done.stderr
