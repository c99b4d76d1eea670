"""Sample arguments of every op, PyTorch's own result for them, and the bound on the error of a kernel.

A kernel written elsewhere is held to the bound that this package's own kernels keep:

    from pypeft_fast.testing import CASES, assert_agrees

    def my_lora_da(dS, x, mask, p, dtype): ...  # the arguments of the op, as pypeft_fast/ops/lora_da.py describes them

    for case in CASES:
        assert_agrees("lora_da", my_lora_da, case)
    assert_agrees("lora_da", my_lora_da, Case(M=4096, K=4096, r=64, p=0.1, dtype=torch.bfloat16))

A kernel for a GPU is called with the GPU's tensors inside `with torch.device("cuda")`. SPOILED has, for every op, ways
to make a kernel wrong that the bound must notice; `assert_spoiling_fails` says whether it does.

`ops/<op>.py` in this folder describes one op. This package's tests, benchmarks, reports and its emulator read them.
"""

from .bounds import OutOfBound, assert_agrees, assert_spoiling_fails, available
from .case import Case
from .cases import CASES, FORMAT_CASES, TYPICAL
from .registry import EAGER, ENTRIES, SPOILED, VARIANTS, sample

__all__ = [
    "CASES",
    "EAGER",
    "ENTRIES",
    "FORMAT_CASES",
    "SPOILED",
    "TYPICAL",
    "VARIANTS",
    "Case",
    "OutOfBound",
    "assert_agrees",
    "assert_spoiling_fails",
    "available",
    "sample",
]
