"""lora_linear with the scale of DoRA: without z, without a bias, and with a scale of any layout."""

import dataclasses

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.testing import Case, assert_agrees, sample
from tests import emulator

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
EVERY_SIZE = pytest.mark.parametrize("M,multiprocessors", [(5, 4), (136, 1), (70, 132)])  # decoding, large tiles, small


@pytest.fixture(autouse=True)
def _loaded():
    with emulator.loaded():
        yield
    emulator.configure()


def scaled(case, **options):
    return dataclasses.replace(case, options={"scale": True, **options})


@EVERY_SIZE
@pytest.mark.parametrize("dtype,adapter", [(F32, None), (BF16, F32), (F16, None)])
@pytest.mark.parametrize("bias,need_z", [(True, False), (False, True)])
def test_without_a_bias_and_without_z(M, multiprocessors, dtype, adapter, bias, need_z, poisoned):
    """N is odd, so only the first row is aligned to 16 bytes."""
    emulator.configure(multiprocessors=multiprocessors)
    assert_agrees("lora_linear", "cuda", scaled(Case(M, 72, 137, 5, 0, dtype, adapter, bias=bias), need_z=need_z))


@EVERY_SIZE
@pytest.mark.parametrize("dtype,adapter", [(F32, None), (BF16, None), (BF16, F32)])
def test_a_misaligned_strided_or_expanded_scale(M, multiprocessors, dtype, adapter):
    emulator.configure(multiprocessors=multiprocessors)
    args = list(sample("lora_linear", scaled(Case(M, 72, 80, dtype=dtype, adapter=adapter))))
    scale = args[6]
    expanded = scale[3:4].expand(80)
    views = [(scale, torch.zeros(161, dtype=scale.dtype)[1::2]), (scale, torch.zeros(81, dtype=scale.dtype)[1:])]
    with pf.using("cuda"):
        for values, view in [*((v, w.copy_(v)) for v, w in views), (expanded.contiguous(), expanded)]:
            args[6] = values
            expected = OPS["lora_linear"](*args)
            args[6] = view
            torch.testing.assert_close(OPS["lora_linear"](*args), expected, rtol=0, atol=0)
