"""assert_agrees for a kernel outside of this package: a function replaces the name of the kernel."""

import pytest
import torch

from pypeft_fast import testing
from pypeft_fast.ops import philox
from pypeft_fast.testing import TYPICAL, Case, OutOfBound, assert_agrees, assert_spoiling_fails


def lora_da(dS, x, mask, p, dtype):
    return (dS.t() @ philox.dropped(x.to(dS.dtype), mask, p)).to(dtype)


def test_a_function_of_the_ops_arguments_is_a_kernel():
    for case in testing.CASES:
        assert_agrees("lora_da", lora_da, case)


def test_a_wrong_value_is_out_of_the_bound_and_the_message_says_by_how_much():
    with pytest.raises(OutOfBound, match=r"lora_da, 33x70x41.*: output 0: error .*, eager's own .*, one ulp"):
        assert_agrees("lora_da", lambda *args: lora_da(*args) * (1 + 1e-4), TYPICAL)
    with pytest.raises(OutOfBound, match="error nan"):
        assert_agrees("lora_da", lambda *args: lora_da(*args) * float("nan"), TYPICAL)


def changing(dS, x, mask, p, dtype):
    result = lora_da(dS, x, mask, p, dtype)
    x[0, 0] += 1
    return result


@pytest.mark.parametrize(
    "kernel,words",
    [
        (changing, "lora_da: the kernel changed argument 1, an input"),
        (lambda *args: lora_da(*args).t(), r"output 0 has shape torch.Size\(\[70, 6\]\), expected torch.Size\(\[6, 70"),
        (lambda *args: lora_da(*args).double(), "output 0 has dtype torch.float64, expected torch.float32"),
        (lambda *args: lora_da(*args).t().contiguous().t(), r"output 0 has strides \(1, 6\), expected a contiguous"),
        (lambda *args: (lora_da(*args), None), "2 outputs, expected 1"),
    ],
)
def test_other_mistakes_in_the_outputs_are_named(kernel, words):
    with pytest.raises(AssertionError, match=words) as raised:
        assert_agrees("lora_da", kernel, TYPICAL)
    assert not isinstance(raised.value, OutOfBound)


def test_a_wrong_mask_is_out_of_the_bound():
    def kernel(x, A, p, seed):
        mask = philox.packed_mask(*x.shape, p, seed + 1)
        return philox.dropped(x, philox.packed_mask(*x.shape, p, seed), p) @ A.t(), mask

    with pytest.raises(OutOfBound, match="output 1: the mask differs from the Philox stream"):
        assert_agrees("lora_shrink", kernel, TYPICAL)


def test_a_named_kernel_must_be_the_one_that_runs():
    with pytest.raises(RuntimeError, match="lora_da: kernel 'cuda' cannot run"):
        assert_agrees("lora_da", "cuda", TYPICAL)


def test_a_mutant_within_the_bound_is_an_error():
    with pytest.raises(AssertionError, match="lora_da: the spoiled kernel reference keeps the bound") as raised:
        assert_spoiling_fails("lora_da", "reference", lambda kernel, *args: kernel(*args), TYPICAL)
    assert not isinstance(raised.value, OutOfBound)


def test_a_mutant_whose_outputs_have_another_shape_proves_nothing():
    with pytest.raises(AssertionError, match="has shape"):
        assert_spoiling_fails("lora_da", "reference", lambda kernel, *args: kernel(*args)[:1], TYPICAL)


def test_within_is_entered_around_the_kernel_alone():
    seen = []

    def kernel(*args):
        seen.append(torch.is_autocast_enabled("cpu"))
        with torch.autocast("cpu", enabled=False):
            return lora_da(*args)

    assert_agrees("lora_da", kernel, Case(), within=torch.autocast("cpu", torch.bfloat16))
    assert seen == [True]
