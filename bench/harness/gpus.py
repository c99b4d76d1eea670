"""Public figures of the GPUs in the performance model, with their sources."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """TFLOPS, dense, without sparsity, and GB/s: from the data sheet (peak_*), and as measured by others."""

    name: str
    peak_bf16: float
    peak_fp32: float
    peak_bandwidth: float
    bf16: float  # the fastest matrix product found by a search over shapes
    bandwidth: float  # STREAM Triad
    bf16_a_clock: int  # bf16 operations per clock of one multiprocessor

    @property
    def integers(self):
        """32-bit logic operations per second, at the clock that follows from the data sheet's TFLOPS.

        A multiprocessor of compute capability 8.0, 9.0 or 10.0 executes 64 per clock (CUDA C++ Programming Guide,
        "Arithmetic Instructions").
        """
        return 64 * self.peak_bf16 * 1e12 / self.bf16_a_clock


SOURCES = """\
Peaks: data sheets of NVIDIA A100 80GB SXM, H100 SXM, H200 SXM and HGX B200. Matrix products: ml-engineering by S.
Bekman (github.com/stas00/ml-engineering), compute/accelerator, "Maximum Achievable Matmul FLOPS", bf16: the fastest
of many shapes, the H200 as the H100. Bandwidth: BabelStream Triad in github.com/Azure/AI-benchmarking-guide,
results of ND A100 v4, ND H100 v5 and ND H200 v5. No such measurement of the B200 was found: its bandwidth is
assumed to be the H200's share of its peak."""

H200_SHARE = 4150 / 4800
GPUS = (
    Gpu("A100", 312, 19.5, 2039, 271.2, 1700, 2048),
    Gpu("H100", 989, 67, 3350, 794.5, 2970, 4096),
    Gpu("H200", 989, 67, 4800, 794.5, 4150, 4096),
    Gpu("B200", 2250, 80, 8000, 1745.0, round(8000 * H200_SHARE), 8192),
)
