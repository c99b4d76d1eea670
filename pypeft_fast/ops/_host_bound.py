"""Whether a GPU finishes a LoRA layer's product before the host has started the ops that follow each other.

An op takes the host about 25 microseconds in Python, besides the launch: the check, the choice of the kernel and the
dispatcher (measured on a CPU, with 8x8 tensors). A layer in one C++ op has no check and no choice in Python, and starts
the launches of all its ops. Above the limits below, the GPU takes longer than the host, and the ops run one by one,
each with the kernel that timing has found the fastest.

The limits are predicted from the data sheet of an H200, not measured. There the largest small product takes about 30
microseconds: 2**33 multiplications of bfloat16 at 600 TFLOP/s, 2**30 of float32 at 67 TFLOP/s, or 128 MiB of a weight
at 4.8 TB/s.
"""

import torch

MULTIPLICATIONS = {torch.bfloat16: 2**33, torch.float16: 2**33, torch.float32: 2**30}
WEIGHT_BYTES = 2**27


def is_small(x: torch.Tensor, N: int) -> bool:
    """Whether the product of x [.., K] and a dense weight [N, K] in x's dtype is below the limits."""
    most = MULTIPLICATIONS.get(x.dtype)  # None for float64, which the C++ kernels do not take
    return most is not None and x.numel() * N <= most and x.shape[-1] * N * x.element_size() <= WEIGHT_BYTES
