"""torch.utils.flop_counter counts the same number for our ops as for the same layer in plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import pypeft_fast as pf
from pypeft_fast._flops import FORMULAS
from pypeft_fast._op import OPS
from tests.device import DEVICE
from tests.interpreter import python

M, N, K, r = 6, 10, 24, 3


def lora(x, W, A, B):
    return F.linear(x, W) + F.linear(F.linear(x, A), B)


CALLS = {
    "lora": (pf.lora_linear, lora, [(M, K), (N, K), (r, K), (N, r)]),
    "lora, three dimensions": (pf.lora_linear, lora, [(2, 3, K), (N, K), (r, K), (N, r)]),
    "ia3": (pf.ia3_linear, lambda x, W, ia3_l: F.linear(x, W) * ia3_l, [(M, K), (N, K), (N,)]),
    "ia3, feedforward": (
        lambda *a: pf.ia3_linear(*a, feedforward=True),
        lambda x, W, ia3_l: F.linear(x * ia3_l, W),
        [(M, K), (N, K), (K,)],
    ),
}


def counted(function, tensors, trains):
    given = [t.detach().clone().requires_grad_(i in trains) for i, t in enumerate(tensors)]
    with FlopCounterMode(display=False) as counter:
        y = function(*given)
        if trains:
            y.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("trains", ["nothing", "adapter", "adapter and x"])
@pytest.mark.parametrize("kernel", ["automatic", "blas"])
@pytest.mark.parametrize("call", CALLS)
def test_the_count_equals_that_of_plain_pytorch(call, kernel, trains):
    ours, eager, shapes = CALLS[call]
    tensors = [torch.randn(*shape, device=DEVICE) for shape in shapes]
    wanted = {"nothing": (), "adapter": range(2, len(shapes)), "adapter and x": (0, *range(2, len(shapes)))}[trains]
    expected = counted(eager, tensors, wanted)
    if kernel == "blas":
        with pf.using("blas"):
            assert counted(ours, tensors, wanted) == expected
    else:
        assert counted(ours, tensors, wanted) == expected
    assert expected > 0


def test_a_counter_made_before_the_import_counts_and_the_import_needs_no_counter():
    script = """
import sys, torch
import pypeft_fast as pf
assert "torch.utils.flop_counter" not in sys.modules
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    pf.lora_linear(torch.randn(3, 8), torch.randn(6, 8), torch.randn(2, 8), torch.randn(6, 2))
print(counter.get_total_flops())
"""
    done = python("-c", script, expect_success=True)
    assert int(done.stdout) == 2 * 3 * (8 * 6 + 8 * 2 + 2 * 6)


def test_every_op_with_a_product_has_a_formula():
    assert {op.__name__ for op in FORMULAS} == set(OPS) - {"swiglu", "swiglu_backward"}
