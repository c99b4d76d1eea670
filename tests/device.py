"""The device of the tests: the CPU, or a GPU with PYPEFT_TEST_DEVICE=cuda, as in `make test-gpu`.

On the CPU no GPU is visible and Triton runs in its interpreter, even if the machine has a GPU. On a GPU Triton
compiles, new tensors are on the GPU, and nothing is timed: tests use the default tiles unless they change this.
"""

import os

import pytest
import torch

DEVICE = os.environ.get("PYPEFT_TEST_DEVICE", "cpu")
ON_GPU = DEVICE == "cuda"


def runs_layers_whole() -> bool:
    """Whether a small LoRA layer is one op on the device of the tests, in C++, and not its parts."""
    from pypeft_fast import _native  # not before prepare()

    return not ON_GPU or (_native.missing_cuda() is None and _native.has_kernels_for(torch.cuda.current_device()))


def prepare():
    """Sets up the device before a test file is imported, because test files create tensors and ask for kernels."""
    if DEVICE not in ("cpu", "cuda"):
        raise pytest.UsageError(f"PYPEFT_TEST_DEVICE={DEVICE} is not a device of the tests; choose cpu or cuda")
    if not ON_GPU:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["HIP_VISIBLE_DEVICES"] = ""
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read by Triton when a kernel is first imported
        return
    if not torch.cuda.is_available():
        raise pytest.UsageError(
            f"PYPEFT_TEST_DEVICE=cuda: PyTorch {torch.__version__} sees no GPU. On a machine with one, install its "
            "driver and a PyTorch built for it (https://pytorch.org/get-started); without one, `make test` runs the "
            "same Triton kernels in Triton's interpreter"
        )
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.setdefault("PYPEFT_FAST_TUNE", "0")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS under torch.use_deterministic_algorithms
    torch.backends.cuda.matmul.fp32_precision = "ieee"  # PyTorch's error is the bound
    torch.set_default_device(DEVICE)
