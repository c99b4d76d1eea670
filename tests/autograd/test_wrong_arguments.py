"""Arguments of a wrong type: every function names the argument, its value and what to give instead."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

import pypeft_fast as pf
from pypeft_fast.autograd.bitfit import bitfit_linear
from pypeft_fast.autograd.bottleneck import bottleneck

M, K, N, R = 5, 8, 6, 2
SHAPES = dict(x=(M, K), gate=(M, K), up=(M, K), weight=(N, K), lora_A=(R, K), lora_B=(N, R), bias=(N,), magnitude=(N,),
              ia3_l=(N,), down=(R, K), down_bias=(R,), up_bias=(N,), residual=(M, N), norm_weight=(K,),
              norm_bias=(K,))  # fmt: skip


def multi(x, weight, lora_A, lora_B, bias, scaling=1.0, dropout_p=0.0, **options):
    index = torch.zeros(M, dtype=torch.int64)
    options |= dict(scalings=[scaling], dropout_ps=[dropout_p])
    return pf.multi_lora_linear(x, weight, [lora_A], [lora_B], index, bias, **options)


FUNCTIONS = {
    "lora_linear": (pf.lora_linear, "x weight lora_A lora_B bias"),
    "dora_linear": (pf.dora_linear, "x weight lora_A lora_B magnitude bias"),
    "lora_gated_linear": (pf.lora_gated_linear, "gate up weight lora_A lora_B bias"),
    "bottleneck": (bottleneck, "x down down_bias up up_bias residual norm_weight norm_bias"),
    "multi_lora_linear": (multi, "x weight lora_A lora_B bias"),
    "ia3_linear": (pf.ia3_linear, "x weight ia3_l bias"),
    "bitfit_linear": (bitfit_linear, "x weight bias"),
}
EVERY = pytest.mark.parametrize("name", list(FUNCTIONS))
WITH_OPTIONS = pytest.mark.parametrize("name", list(FUNCTIONS)[:5])


def call(name, **changed):
    function, names = FUNCTIONS[name]
    shapes = SHAPES | (dict(up=(N, R)) if name == "bottleneck" else {})
    torch.manual_seed(0)
    return function(**{of: torch.randn(shapes[of]) for of in names.split()} | changed)


@EVERY
def test_what_is_no_dense_tensor_is_named(name):
    for i, of in enumerate(FUNCTIONS[name][1].split()):
        for value, words in (
            (np.zeros((M, K), "float32"), "is a ndarray; give a tensor"),
            (torch.ones(SHAPES[of]).to_sparse(), rf"has layout torch.sparse_coo; give {of}(\[0\])?.to_dense"),
            (None, "is a NoneType") if i == 0 else (3, "is a int"),
        ):
            with pytest.raises(TypeError, match=rf"^\w+: {of}(\[0\])? {words}"):
                call(name, **{of: value})
    of = FUNCTIONS[name][1].split()[0]
    nested = torch.nested.nested_tensor([torch.ones(2, K), torch.ones(3, K)])
    with pytest.raises(TypeError, match=rf"^{name}: {of} is a nested tensor"):
        call(name, **{of: nested})


@WITH_OPTIONS
@pytest.mark.parametrize("value", ["2", None, 2j, [1.0]], ids=str)
def test_what_is_no_number_is_named(name, value):
    for of in ("scaling", "dropout_p"):
        with pytest.raises(
            TypeError, match=rf"^{name}: \w+(\[0\])?=.*{'2' if value == '2' else ''}.* must be a number"
        ):
            call(name, **{of: value})


@WITH_OPTIONS
@pytest.mark.parametrize("generator", [3, "cpu", object()], ids=["3", "cpu", "object"])
def test_what_is_no_generator_is_named(name, generator):
    for p in (0.0, 0.5):
        with pytest.raises(TypeError, match=rf"^{name}: generator=.* must be a torch.Generator, such as"):
            call(name, dropout_p=p, generator=generator)


@WITH_OPTIONS
def test_any_real_number_is_one(name):
    expected = call(name, scaling=0.5)
    for value in (np.float32(0.5), np.float64(0.5), Fraction(1, 2)):
        assert torch.equal(call(name, scaling=value), expected)


@WITH_OPTIONS
def test_a_scaling_of_nan_gives_nan_as_eager_pytorch_does(name):
    assert call(name, scaling=math.nan).isnan().all()


@pytest.mark.parametrize("weight,words", [(np.eye(64, dtype="f"), "weight is a ndarray"), (None, "is a NoneType")])
def test_quantize_names_what_is_no_tensor(weight, words):
    with pytest.raises(TypeError, match=words):
        pf.quantize(weight)
    with pytest.raises(TypeError, match="Frozen: weight is a "):
        pf.Frozen("dense", (weight,))
    with pytest.raises(ValueError, match="block_size='64'; choose one of"):
        pf.quantize(torch.eye(64), block_size="64")
