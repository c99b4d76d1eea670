"""Freed and short storages are an error that names the op and the tensor; a kernel would read past the memory."""

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.testing import Case, available, cut, sample
from tests.device import DEVICE

CASE = Case(6, 24, 10, 3, 0.3, options={"scale": True})
COMPILED = ("cpu", "cuda", "triton")  # kernels that read memory without PyTorch
KERNELS = [(name, kernel) for name, op in OPS.items() for kernel in available(op) if kernel in COMPILED]


def _copies(args):
    """The arguments with each tensor in its own storage, three elements after the beginning of the storage."""
    return [
        torch.empty(a.numel() + 3, dtype=a.dtype, device=a.device)[3:].copy_(a.reshape(-1)).view(a.shape)
        if isinstance(a, torch.Tensor)
        else a
        for a in args
    ]


@pytest.mark.parametrize("op,kernel", KERNELS)
@pytest.mark.parametrize("left", [0, 0.5, -1], ids=["freed", "half", "one byte short"])
def test_a_storage_that_is_too_small_is_an_error_that_names_the_tensor(op, kernel, left):
    args = sample(op, cut(op, kernel, CASE))
    names = [a.name for a in getattr(torch.ops.pypeft_fast, op).default._schema.arguments]
    for i, name in enumerate(names):
        if i < len(args) and isinstance(args[i], torch.Tensor):
            copies = _copies(args)
            storage = copies[i].untyped_storage()
            needed = storage.nbytes()
            storage.resize_(needed - 1 if left == -1 else int(left * needed))
            words = rf"^{op}: the storage of {name} holds {storage.nbytes()} bytes and .* need {needed}: "
            with pf.using(kernel), pytest.raises(RuntimeError, match=words):
                OPS[op](*copies)


@pytest.mark.parametrize("op,kernel", KERNELS)
def test_a_storage_that_just_holds_its_tensor_is_accepted(op, kernel):
    args = sample(op, cut(op, kernel, CASE))
    with pf.using(kernel):
        torch.testing.assert_close(OPS[op](*_copies(args)), OPS[op](*args))


def test_memory_that_strides_leave_out_is_not_asked_for():
    x, A = torch.randn(1, 24, device=DEVICE).expand(6, 24), torch.randn(3, 24, device=DEVICE)
    for kernel in available(OPS["lora_shrink"]):
        with pf.using(kernel):
            s, _ = OPS["lora_shrink"](x, A, 0.0, None)
        torch.testing.assert_close(s, x @ A.t())


def test_a_layer_whose_weight_was_freed_raises():
    x, weight, A, B = (torch.randn(*shape, device=DEVICE) for shape in ((3, 8), (6, 8), (2, 8), (6, 2)))
    weight.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="storage of weight holds 0 bytes|not allocated"):
        pf.lora_linear(x, weight, A.requires_grad_(), B)
