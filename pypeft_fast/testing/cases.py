"""The cases for which every kernel of every op is tested: sizes around tile sizes, dtypes, layouts, dropout."""

from itertools import product

import torch

from .case import Case

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
SIZES = [(1, 1, 1, 1), (3, 17, 63, 2), (65, 129, 33, 7), (17, 64, 65, 16), (130, 40, 24, 33), (33, 72, 80, 64)]
CASES = [
    *(Case(*size, p=p) for size, p in product(SIZES, (0.0, 0.3))),
    *(Case(19, 83, 45, 5, p, dtype, adapter) for p, dtype, adapter in product((0.0, 0.3), (BF16, F16), (None, F32))),
    *(Case(21, 50, 37, 9, p, dtype, layout="strided") for p, dtype in product((0.0, 0.3), (F32, BF16))),
    *(Case(*size, p=0.3) for size in [(0, 8, 9, 2), (2, 100, 3, 128), (9, 520, 512, 8), (300, 16, 16, 257)]),
    *(Case(M, 70, 21, 5, 0.0, d, a) for M, d, a in product((1, 3, 8), (BF16, F16), (None, F32))),  # few rows
    Case(7, 33, 20, 4, 0.5, bias=False),
    Case(7, 33, 20, 4, 0.999, F32),
    Case(7, 33, 20, 4, 1e-7, F32),
]
# For every format: M below and above the limit of the kernels for few rows; K that is a multiple of the block size, and
# an odd K that is not.
FORMATS = ("nf4", "nf4, 32", "fp4", "fp4, 512", "int8", "fp8")
FORMAT_CASES = [
    *(Case(M, K, 37, 5, 0.3, format=f) for f, M, K in product(FORMATS, (3, 40), (128, 75))),
    *(Case(M, 192, 70, 5, 0.0, d, F32, format=f) for f, M, d in product(("nf4", "int8"), (1, 8, 130), (BF16, F16))),
    Case(33, 21, 3, 2, format="nf4"),  # an odd number of weights
    Case(0, 64, 9, 2, format="nf4"),
    Case(12, 8200, 70, 2, 0.0, F16, format="nf4"),  # decoded in several blocks
]
TYPICAL = Case(33, 70, 41, 6, 0.4)  # for tests of one case: every term contributes, and no size is a multiple of a tile
