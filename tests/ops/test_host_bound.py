"""The limits below which a GPU computes a LoRA layer in one C++ op, and the choice between that op and its parts."""

import dataclasses

import pytest
import torch
from torch._subclasses import FakeTensorMode

import pypeft_fast as pf
from pypeft_fast import _native
from pypeft_fast._op import OPS, PARTS
from pypeft_fast.ops import _host_bound

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
NAMES = ("lora_forward", "lora_backward")


def meta(*shape, dtype):
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize(
    "dtype,M,K,N,small",
    [
        (BF16, 512, 4096, 4096, True),
        (BF16, 513, 4096, 4096, False),
        (F16, 512, 4096, 4096, True),
        (F32, 64, 4096, 4096, True),
        (F32, 65, 4096, 4096, False),
        (BF16, 1, 8192, 8192, True),
        (BF16, 1, 8192, 8193, False),  # few products, and a weight of more than 128 MiB
        (F32, 1, 8192, 4096, True),
        (F32, 1, 8192, 4097, False),
        (BF16, 0, 8, 8, True),
        (F64, 1, 8, 8, False),
    ],
)
def test_a_product_is_small_below_the_limits_of_its_dtype(dtype, M, K, N, small):
    assert _host_bound.is_small(meta(M, K, dtype=dtype), N) is small
    assert _host_bound.is_small(meta(1, M, K, dtype=dtype), N) is small


def arguments(op, M, K, N, dtype=BF16, r=16, device="meta", needs=(True, True, True)):
    """The arguments of lora_forward or lora_backward, of which only shapes, dtypes and devices count."""

    def new(*shape):
        return torch.empty(shape, dtype=dtype, device=device)

    A, B = new(r, K), new(N, r)
    if op == "lora_forward":
        return new(M, K), new(N, K), None, A, B, 1.0, 0.0, None
    x, weight, A = new(M, K) if needs[1] else None, new(N, K) if needs[0] else None, A if needs[0] else None
    return new(M, N), x, weight, A, B, new(M, r), None, 1.0, 0.0, *needs, dtype


@pytest.mark.parametrize("needs", [(True, True, True), (True, False, False), (False, True, True)], ids=str)
def test_the_backward_pass_is_as_large_as_the_forward_pass(needs):
    assert OPS["lora_backward"]._is_small(arguments("lora_backward", 512, 4096, 4096, needs=needs))
    assert not OPS["lora_backward"]._is_small(arguments("lora_backward", 512, 4097, 4096, needs=needs))


def test_the_gradient_of_lora_B_alone_is_a_product_with_s():
    assert OPS["lora_backward"]._is_small(arguments("lora_backward", 4096, 4096, 4096, needs=(False, False, True)))


@pytest.mark.parametrize("op", NAMES)
def test_arguments_with_too_few_dimensions_are_left_to_the_check(op):
    args = arguments(op, 8, 8, 8)
    assert not OPS[op]._is_small((torch.empty(()), *args[1:]))


@pytest.fixture(params=NAMES)
def op(request, monkeypatch):
    """The op, on a machine where the kernel "cuda" is available."""
    op = OPS[request.param]
    cuda = dataclasses.replace(op._named("cuda"), missing=lambda: None)
    monkeypatch.setattr(op, "kernels", [cuda if k.name == "cuda" else k for k in op.kernels])
    monkeypatch.setitem(op._direct, "cuda", f"the C++ kernel of {op.name}")
    monkeypatch.setattr(_native, "too_old", lambda device: None)
    monkeypatch.setattr(_native, "has_kernels_for", lambda gpu: True)
    with FakeTensorMode():
        yield op


def chosen(op, args):
    """(the name of the kernel that `choose` returns, whether a call goes directly to the C++ kernel)."""
    return op.choose(*args).name, op._direct_on_gpu(args) is not None


def small(op, **options):
    return arguments(op.name, 16, 64, 64, device="cuda", **options)


def large(op):
    return arguments(op.name, 8192, 4096, 4096, device="cuda")


def test_a_small_product_on_a_gpu_is_one_op_and_a_large_one_its_parts(op):
    assert chosen(op, small(op)) == ("cuda", True)
    assert chosen(op, large(op)) == (PARTS, False)


@pytest.mark.parametrize("kernel,of_small,of_large", [("cuda", "cuda", "cuda"), ("triton", PARTS, PARTS)])
def test_a_forced_kernel_runs_in_one_op_of_any_size_or_in_the_parts(kernel, of_small, of_large, op):
    with pf.using(kernel):
        assert chosen(op, small(op)) == (of_small, kernel == "cuda")
        assert chosen(op, large(op)) == (of_large, kernel == "cuda")


def test_a_gpu_without_cuda_kernels_runs_the_parts(op, monkeypatch):
    monkeypatch.setattr(_native, "too_old", lambda device: "it is too old")
    monkeypatch.setattr(_native, "has_kernels_for", lambda gpu: False)
    assert chosen(op, small(op)) == (PARTS, False)


def test_without_the_cuda_library_the_parts_run(op, monkeypatch):
    missing = dataclasses.replace(op._named("cuda"), missing=lambda: "it is not installed")
    monkeypatch.setattr(op, "kernels", [missing if k.name == "cuda" else k for k in op.kernels])
    monkeypatch.delitem(op._direct, "cuda")
    assert chosen(op, small(op)) == (PARTS, False)


def test_float64_runs_in_the_parts(op):
    assert chosen(op, small(op, dtype=F64)) == (PARTS, False)


def test_tensors_on_a_cpu_never_go_to_the_kernel_of_a_gpu(op):
    args = arguments(op.name, 16, 64, 64, device="cpu")
    assert op._direct_on_gpu(args) is None and op.choose(*args).name != "cuda"
