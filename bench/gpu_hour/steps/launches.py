"""python -m bench.gpu_hour.steps.launches OP|all: runs each CUDA C++ kernel of an op once.

The operands are made on the CPU and copied, so that a profiler or sanitizer sees only our kernels.
"""

import itertools
import sys

import torch

import pypeft_fast as pf
from pypeft_fast import _own  # noqa: F401 - registers all ops
from pypeft_fast._op import OPS
from pypeft_fast.testing import VARIANTS, Case, available, cut, sample

from .. import device
from ..device import BF16, F32

# Decoding with 8 and with 16 rows; small and large ranks and tiles; no size is a multiple of a tile.
SIZES = ((5, 136, 40, 5), (13, 136, 40, 5), (136, 136, 136, 5), (300, 72, 136, 40))
DTYPES = ((BF16, None), (BF16, F32), (F32, None))


def calls(name):
    for (op, options), (M, K, N, r), (dtype, adapter) in itertools.product(VARIANTS.values(), SIZES, DTYPES):
        if name in (op, "all") and OPS[op].launches("cuda"):
            yield op, cut(op, "cuda", Case(M, K, N, r, 0.3, dtype, adapter, options=options))


def moved(value):
    """An argument with its tensors on the device."""
    if isinstance(value, list):
        return [moved(one) for one in value]
    return value.to(device.DEVICE) if isinstance(value, torch.Tensor) else value


def main(name):
    kernel = device.sized("cuda", "triton")
    for op, case in itertools.islice(calls(name), device.sized(None, 1)):
        args = [moved(a) for a in sample(op, case)]
        with torch.device(device.DEVICE), pf.using(kernel):
            if kernel not in available(OPS[op]):
                sys.exit(f"{op}: {OPS[op].name} has no kernel {kernel} here: {pf.kernels()[op]}")
            OPS[op](*args)
        device.synchronize()


if __name__ == "__main__":
    main(sys.argv[1])
