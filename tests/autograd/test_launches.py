"""The number of launches of a layer on a GPU, and that the host never waits for a launch.

The tests run the code for a GPU with CPU tensors, and without the launches. They see every operator of PyTorch that
would launch a kernel, copy, or wait.
"""

from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.autograd.dora import DoRALinearFunction
from pypeft_fast.autograd.dora_norm import dora_norm
from pypeft_fast.ops import _triton
from pypeft_fast.ops.lora_shrink import lora_shrink
from tests.device import ON_GPU

if _triton.why_no_triton() is not None or ON_GPU:
    pytest.skip("needs Triton's interpreter", allow_module_level=True)

from triton.runtime.interpreter import GridExecutor  # noqa: E402

from pypeft_fast.kernels import _tiles  # noqa: E402

ARCHITECTURES = ("interpreter", 80, 90, 100, "gfx942")
# Allocations and views launch nothing. `zeros` creates the tickets of _reduce, once a stream or graph.
FREE = {"empty", "new_empty", "empty_like", "zeros", "promote_types", "_unsafe_view"}


class Watch(TorchDispatchMode):
    """Records in order what runs: "op:NAME" for operators that are not in FREE and no views, also inside our ops."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.partition("::")[2]
        if func.namespace == "pypeft_fast":
            with self:
                return OPS[name].choose(*args).function(*args)
        out = func(*args, **(kwargs or {}))
        if name not in FREE and not (func.is_view and shares(out, args[0])):
            self.seen.append(f"op:{name}")
        return out


def shares(out, tensor):
    """Whether `out` is a view of `tensor`; `to`, `contiguous` and `reshape` may also copy."""
    return out.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


@pytest.fixture(params=ARCHITECTURES, ids=str)
def watch(request, monkeypatch):
    """A Watch, whose `seen` also has the Triton launches, by the name of the kernel."""
    watch = Watch()
    monkeypatch.setenv("PYPEFT_FAST_TUNE", "0")
    monkeypatch.setattr(_tiles, "architecture", lambda device: request.param)
    monkeypatch.setattr(GridExecutor, "__call__", lambda self, *_, **__: watch.seen.append(self.fn.__name__))
    with pf.using("triton"):
        yield watch


def layer(dtype=torch.bfloat16, r=8):
    """x, weight, A, B, with sizes that need several tiles and parts on every architecture."""
    x, W, A, B = (torch.randn(s) for s in ((300, 256), (384, 256), (r, 256), (384, r)))
    return x.to(dtype).requires_grad_(), W.to(dtype), A.requires_grad_(), B.requires_grad_()


@pytest.mark.parametrize("p", [0.0, 0.1])
def test_lora_takes_two_launches_forward_and_three_backward(watch, p):
    x, W, A, B = layer()
    with watch:
        y = pf.lora_linear(x, W, A, B, scaling=2.0, dropout_p=p)
    assert watch.seen == ["op:randint"] * (p > 0) + [
        "_lora_shrink",
        "_lora_linear",
    ]  # randint draws the seed of the mask
    dY = torch.empty_like(y)
    watch.seen.clear()
    with watch:
        torch.autograd.grad(y, (x, A, B), dY)
    assert watch.seen == ["_lora_ds_db", "_lora_dx", "_lora_da"]


def test_a_first_layer_takes_two_launches_backward(watch):
    x, W, A, B = layer()
    y = pf.lora_linear(x.detach(), W, A, B, dropout_p=0.1)
    watch.seen.clear()
    with watch:
        torch.autograd.grad(y, (A, B), torch.empty_like(y))
    assert watch.seen == ["_lora_ds_db", "_lora_da"]


@pytest.mark.parametrize("feedforward", [False, True])
def test_ia3_takes_one_launch_each_way(watch, feedforward):
    x, W, *_ = layer()
    ia3_l = torch.ones(256 if feedforward else 384, requires_grad=True)
    with watch:
        y = pf.ia3_linear(x, W, ia3_l, feedforward=feedforward)
    assert watch.seen == ["_ia3_linear"]
    dY = torch.empty_like(y)
    watch.seen.clear()
    with watch:
        torch.autograd.grad(y, (x, ia3_l), dY)
    assert watch.seen == ["_ia3_dx_dl"]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_dora_takes_two_launches_forward(watch, bias, trained):
    """The norm is given. Beside the launches there are three operations on N numbers, for the scale.

    Dropout adds a product into a separate tensor.
    """
    x, W, A, B = layer()
    magnitude, norm = torch.ones(384, requires_grad=trained), torch.ones(384)
    b = torch.zeros(384, dtype=x.dtype) if bias else None
    with watch:
        y = DoRALinearFunction.apply(x, W, b, A, B, magnitude, norm, 2.0, 0.0, None)
    assert sorted(watch.seen) == ["_lora_linear", "_lora_shrink", "op:div", "op:eq", "op:masked_fill"]
    watch.seen.clear()
    with watch:
        torch.autograd.grad(y, (x, A, B, *[magnitude] * trained), torch.empty_like(y))
    of_magnitude = ["_ia3_dx_dl", "op:div", "op:eq", "op:masked_fill"] * trained
    of_B = ["op:mul", "_lora_ds_db", "op:mul"]  # the op:mul have the size of B
    assert watch.seen == [*of_B, "op:clone", "op:mul_", "_lora_dx", "_lora_da", *of_magnitude]
    watch.seen.clear()
    with watch:
        DoRALinearFunction.apply(x, W, b, A, B, magnitude, norm, 2.0, 0.1, torch.empty(1, dtype=torch.int64))
    assert [seen for seen in watch.seen if seen.startswith("_") or "mm" in seen] == [
        "_lora_shrink",
        "_lora_linear",
        "op:addmm",
    ]


@pytest.mark.parametrize("dtype,product", [(torch.bfloat16, "_lora_shrink"), (torch.float32, "op:mm")])
def test_the_length_takes_two_passes_over_the_weight_and_no_copy_of_it(watch, dtype, product):
    """The passes are the norm and one product. The other operations have the sizes of A and B."""
    _, W, A, B = layer(dtype)
    with watch:
        dora_norm(W, A, B, 2.0)
    of_weight = [product, "op:linalg_vector_norm", "op:square"]
    assert watch.seen == [*of_weight, "op:mm", "op:addmm", "op:mul", "op:sum", "op:add", "op:clamp_min", "op:sqrt"]


@pytest.mark.parametrize("p", [0.0, 0.1])
def test_stacked_projections_share_one_shrink(watch, p):
    x, _, A, _ = layer(r=24)
    seeds = torch.empty(3, dtype=torch.int64) if p else None
    with watch:
        s, _ = lora_shrink(x, A, p, seeds)
    assert watch.seen == ["_lora_shrink"] and s.shape == (300, 24)


@pytest.mark.parametrize("name", ["item", "nonzero", "to", "contiguous"])
def test_waiting_and_copying_are_seen(watch, name):
    spoil = {
        "item": lambda x: x[0, 0].item(),
        "nonzero": lambda x: x.nonzero(),
        "to": lambda x: x.to(torch.float32),
        "contiguous": lambda x: x.t().contiguous(),
    }[name]
    x, W, *_ = layer()
    ia3_l = torch.ones(384)
    with mock.patch.object(_tiles, "launch", lambda op, run, operands, *sizes: spoil(*operands)), watch:
        pf.ia3_linear(x, W, ia3_l)
    assert watch.seen == [f"op:{name}"]
