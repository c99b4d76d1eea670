"""Every op on every available kernel: values, shapes and layouts, registration, and planted faults that must fail."""

import dataclasses

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import NATIVE, OPS
from pypeft_fast.frozen.formats import FORMATS
from pypeft_fast.frozen.op import FrozenOp
from pypeft_fast.testing import (
    CASES,
    ENTRIES,
    FORMAT_CASES,
    SPOILED,
    TYPICAL,
    VARIANTS,
    Case,
    assert_agrees,
    assert_spoiling_fails,
    available,
    cut,
    felt,
    sample,
)
from tests.device import DEVICE

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
KERNELS = [(name, kernel) for name, op in OPS.items() for kernel in available(op)]
VARIANT_KERNELS = [(title, kernel) for title, (op, _) in VARIANTS.items() for kernel in available(OPS[op])]


@pytest.mark.parametrize("op,kernel", KERNELS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(op, kernel, case, poisoned):
    assert_agrees(op, kernel, case)


def _format_calls():
    """All cases for kernels that decode the weight themselves; one case for each format for other kernels."""
    for op, kernel in KERNELS:
        if op == "dequantize" or isinstance(OPS[op], FrozenOp):
            decodes = op == "dequantize" or kernel in NATIVE
            firsts = {case.format: case for case in reversed(FORMAT_CASES)}
            yield from ((op, kernel, case) for case in (FORMAT_CASES if decodes else firsts.values()))


@pytest.mark.parametrize("op,kernel,case", list(_format_calls()), ids=str)
def test_agrees_over_every_format(op, kernel, case, poisoned):
    try:
        assert_agrees(op, kernel, case)
    except RuntimeError as error:  # a format without a decoder in the compiled kernels
        native = FORMATS[case.format.partition(",")[0]].native
        decodes = kernel in NATIVE or (op, kernel) == ("dequantize", "triton")
        assert not native and decodes and "cannot read weights of format" in str(error)


def test_the_compiled_kernels_decode_these_formats():
    assert {name for name, its in FORMATS.items() if its.native} >= {"dense", "nf4", "fp4", "int8", "fp8"}


@pytest.mark.parametrize("op,kernel", KERNELS)
def test_opcheck(op, kernel):
    with pf.using(kernel):
        for case in (TYPICAL, Case(p=0.0), Case(dtype=BF16, adapter=F32, p=0.2)):
            torch.library.opcheck(getattr(torch.ops.pypeft_fast, op).default, sample(op, cut(op, kernel, case)))


@pytest.mark.parametrize("op,kernel", KERNELS)
def test_a_tensor_on_another_device_is_an_error_that_names_both(op, kernel):
    args = sample(op, TYPICAL)
    here = args[0].device
    words = rf"\w+: \w+ is on (meta but \w+ is on {here}|{here} but \w+ is on meta); move one of them"
    for i, moved in enumerate(args[1:], 1):
        if isinstance(moved, torch.Tensor):
            apart = (*args[:i], moved.to("meta"), *args[i + 1 :])
            with pf.using(kernel), pytest.raises(ValueError, match=words):
                OPS[op](*apart)
            with pytest.raises(ValueError, match=words):  # the same when PyTorch does not dispatch to the other device
                OPS[op].check_arguments(*apart)


@pytest.mark.parametrize("op", [name for name in OPS if name != "dequantize"])  # dequantize has no activations
def test_float64_is_exact_on_the_reference_and_refused_by_compiled_kernels(op):
    args = sample(op, Case(dtype=torch.float64, p=0.25))
    ran = OPS[op].choose(*args).name
    assert ran == "blas"
    for kernel in set(available(OPS[op])) - {"blas", "reference"}:
        with pf.using(kernel), pytest.raises(RuntimeError, match="float64 runs on the kernels blas and reference"):
            OPS[op](*args)


@pytest.mark.parametrize("op,kernel", KERNELS)
def test_autocast_changes_nothing_inside_an_op(op, kernel):
    assert_agrees(op, kernel, TYPICAL, within=torch.autocast(DEVICE, torch.bfloat16))


@pytest.mark.parametrize("op,kernel", KERNELS)
def test_is_deterministic_at_any_number_of_threads(op, kernel, set_threads):
    args = sample(op, cut(op, kernel, Case(257, 130, 140, 16, 0.3)))
    results = []
    with pf.using(kernel):
        for n in (1, 2, 2):
            set_threads(n)
            results.append(OPS[op](*args))
    torch.testing.assert_close(results[1], results[2], rtol=0, atol=0)
    torch.testing.assert_close(results[0], results[1])


# (op, the argument of which each row determines one row of the result)
ROWWISE = [("lora_linear", 0), ("lora_linear", 3), ("lora_dx", 0), ("lora_dx", 2), ("ia3_linear", 0), ("ia3_dx_dl", 0)]


@pytest.mark.parametrize("op,index,kernel", [(o, i, k) for o, i in ROWWISE for k in available(OPS[o])])
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_nan_stays_in_its_row_where_the_inner_axis_is_odd(op, index, kernel, dtype):
    """bfloat16 is multiplied in pairs, and the element after a row of odd length is the first one of the next row."""
    args = sample(op, Case(256, 33, 49, 3, 0.3 if op == "lora_dx" else 0.0, dtype))
    args[index][5, 0] = float("nan")
    with pf.using(kernel):
        outputs = OPS[op](*args)
    y = outputs[0] if isinstance(outputs, tuple) else outputs
    assert y.isnan().any(1).nonzero().flatten().tolist() == [5]


# assert_agrees must fail for every kernel that is spoiled in one of these ways, which a loose bound would not notice.
@pytest.mark.parametrize("title,kernel,how", [(t, k, how) for t, k in VARIANT_KERNELS for how in felt(t, k)])
def test_a_spoiled_kernel_is_out_of_the_bound(title, kernel, how):
    op, options = VARIANTS[title]
    assert_spoiling_fails(op, kernel, SPOILED[title][how], dataclasses.replace(TYPICAL, options=options))


def test_every_op_has_mutations_and_a_reference():
    assert set(ENTRIES) == set(OPS) and all(SPOILED.values())
    assert all("reference" in available(op) for op in OPS.values())
