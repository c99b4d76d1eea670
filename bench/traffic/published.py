"""The traffic of published fused kernels, taken from their source; running them would need a GPU and their package."""

from collections import Counter

from .count import Kernel, Step


def lorafusion(shape):
    """LoRAFusion (Zhu et al., arXiv:2510.00206), bf16 with dropout.

    github.com/CentML/lorafusion at 5642ebf: lorafusion/ops/lora_v1.py with its default settings. Dropout is a separate
    kernel that writes dropped x and a mask of bytes. The partial sums of fused_lora_dys_dyb are float32 atomics; each
    of its outputs counts once here.
    """
    M, K, N, r = shape.M, shape.K, shape.N, shape.r
    x, y, weight, mask = Counter(MK=2 * M * K), Counter(MN=2 * M * N), Counter(NK=2 * N * K), Counter(MK=M * K)
    s, A, B = (Counter({"low rank": 2 * r * rows}) for rows in (M, K, N))
    s32, B32 = s + s, B + B
    gemm = 2 * M * N * K
    kernels = [
        Kernel("seeded_dropout", False, x, x + mask),
        Kernel("mm", False, x + A, s, 2 * M * K * r),
        Kernel("fused_lora_xw_sb", False, x + weight + s + B, y, gemm + 2 * M * N * r),
        Kernel("zeros", True, Counter(), B32),
        Kernel("zeros", True, Counter(), s32),
        Kernel("fused_lora_dys_dyb", True, y + s + B, s32 + B32, 4 * M * N * r),
        Kernel("to", True, B32, B),
        Kernel("to", True, s32, s),
        Kernel("mm", True, s + x, A, 2 * M * K * r),
        Kernel("fused_lora_dyw_dsa", True, y + weight + s + A + mask, x, gemm + 2 * M * K * r),
    ]
    return Step(kernels, x + mask + s)
