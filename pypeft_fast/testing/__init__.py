"""Sample arguments of every op, eager PyTorch's result, and the bound on the error of a kernel.

Third-party kernels can be tested against the same bound as this package's kernels:

    from pypeft_fast.testing import CASES, assert_agrees

    def my_lora_da(dS, x, mask, p, dtype): ...  # the arguments of the op, as pypeft_fast/ops/lora_da.py describes them

    for case in CASES:
        assert_agrees("lora_da", my_lora_da, case)
    assert_agrees("lora_da", my_lora_da, Case(M=4096, K=4096, r=64, p=0.1, dtype=torch.bfloat16))

Inside `with torch.device("cuda")` the arguments are tensors on the GPU. SPOILED has mutants for every op: functions
that make a kernel's outputs wrong. `assert_spoiling_fails` checks that a mutant exceeds the bound.

`ops/<op>.py` in this folder describes one op. This package's tests, benchmarks, reports and emulator use these files.
"""

from .bounds import OutOfBound, assert_agrees, assert_spoiling_fails, available
from .case import Case
from .cases import CASES, FORMAT_CASES, TYPICAL
from .registry import EAGER, ENTRIES, SPOILED, VARIANTS, cut, felt, sample

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
    "cut",
    "felt",
    "sample",
]
