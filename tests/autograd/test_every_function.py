"""Every function with any of its tensors frozen: the other gradients equal those of a call that needs all."""

from itertools import product

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.autograd.lora_sum import lora_sum_linear
from tests.device import DEVICE

M, K, N, R, P = 6, 12, 9, 3, 0.3
SHAPES = {"x": (2, M // 2, K), "weight": (N, K), "lora_A": (R, K), "lora_B": (N, R), "bias": (N,), "magnitude": (N,),
          "gate": (2, M // 2, K), "up": (2, M // 2, K), "l_N": (N,), "l_K": (K,)}  # fmt: skip


def _generator():
    return torch.Generator(DEVICE).manual_seed(5)


def _lora(x, weight, lora_A, lora_B, bias):
    return pf.lora_linear(x, weight, lora_A, lora_B, bias, scaling=0.7, dropout_p=P, generator=_generator())


def _dora(x, weight, lora_A, lora_B, magnitude, bias):
    options = dict(scaling=0.7, dropout_p=P, generator=_generator())
    return pf.dora_linear(x, weight, lora_A, lora_B, magnitude, bias, **options)


def _gated(gate, up, weight, lora_A, lora_B, bias):
    options = dict(scaling=0.7, dropout_p=P, generator=_generator())
    return pf.lora_gated_linear(gate, up, weight, lora_A, lora_B, bias, **options)


def _multi(x, weight, lora_A, lora_B, bias):
    index = torch.tensor([0, -1])
    options = dict(scalings=0.7, dropout_ps=P, generator=_generator())
    return pf.multi_lora_linear(x, weight, [lora_A], [lora_B], index, bias, **options)


def _sum(x, weight, lora_A, lora_B, bias):
    return lora_sum_linear(x, weight, [lora_A] * 2, [lora_B] * 2, bias, scalings=[0.7, 0.5], dropout_ps=[P, P])


FUNCTIONS = {
    "lora": (_lora, "x weight lora_A lora_B bias"),
    "dora": (_dora, "x weight lora_A lora_B magnitude bias"),
    "gated": (_gated, "gate up weight lora_A lora_B bias"),
    "multi": (_multi, "x weight lora_A lora_B bias"),
    "ia3": (lambda x, weight, l_N, bias: pf.ia3_linear(x, weight, l_N, bias), "x weight l_N bias"),
    "ia3 feedforward": (
        lambda x, weight, l_K, bias: pf.ia3_linear(x, weight, l_K, bias, feedforward=True),
        "x weight l_K bias",
    ),
}


@pytest.mark.parametrize("one_by_one", [False, True], ids=["one call each way", "one op after the other"])
@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_gradients_do_not_depend_on_which_are_needed(name, one_by_one, monkeypatch):
    for op in ("lora_forward", "lora_backward") if one_by_one else ():
        monkeypatch.setattr(OPS[op], "_direct", {})
        monkeypatch.setattr(OPS[op], "_is_in_parts", lambda args: True)
    function, names = FUNCTIONS[name]
    tensors = [torch.randn(SHAPES[of]) for of in names.split()]
    every = [t.clone().requires_grad_() for t in tensors]
    y = function(*every)
    dY = torch.randn_like(y)
    expected = torch.autograd.grad(y, every, dY)
    for needed in product((True, False), repeat=len(tensors)):
        given = [t.clone().requires_grad_(need) for t, need in zip(tensors, needed, strict=True)]
        y = function(*given)
        if not any(needed):
            assert not y.requires_grad
            continue
        grads = torch.autograd.grad(y, [t for t in given if t.requires_grad], dY)
        wanted = [g for g, need in zip(expected, needed, strict=True) if need]
        torch.testing.assert_close(grads, tuple(wanted), rtol=1e-5, atol=1e-5)


class Overwritten(TorchDispatchMode):
    """found: the names of PyTorch's ops that have written into a result of one of our ops. results: these results."""

    def __init__(self):
        super().__init__()
        self.results, self.found = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for argument, given in zip(function._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                held = {t.untyped_storage().data_ptr() for t in self.results}
                self.found += [str(function)] * (given.untyped_storage().data_ptr() in held)
        results = function(*args, **(kwargs or {}))
        if function.namespace == "pypeft_fast":
            self.results += [t for t in tree_leaves(results) if isinstance(t, torch.Tensor) and t.numel()]
        return results


@pytest.mark.parametrize("format", [None, "nf4", "int8"])
@pytest.mark.parametrize("name", [*FUNCTIONS, "sum"])
def test_no_result_of_an_op_is_written_in_place(name, format):
    """Selective checkpointing keeps such results, and torch.compile of PyTorch 2.11 gave DoRA wrong gradients."""
    function, names = FUNCTIONS.get(name, (_sum, "x weight lora_A lora_B bias"))
    torch.manual_seed(0)
    given = {name: torch.randn(SHAPES[name], device=DEVICE).requires_grad_(name != "weight") for name in names.split()}
    if format is not None:
        given["weight"] = pf.quantize(given["weight"], format)
    with Overwritten() as overwritten:
        function(*given.values()).square().sum().backward()
    assert overwritten.found == [] and overwritten.results
