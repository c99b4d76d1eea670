"""Triton kernels compile for GPUs that this machine does not have: compiled and checked, not run."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

# In a process of its own: under TRITON_INTERPRET a kernel is not the object that the compiler takes.
COMPILE = """
import json, re, sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from pypeft_fast.kernels.lora_shrink import _lora_shrink
x, adapter, backend, arch, dropout = json.loads(sys.argv[1])
types = dict.fromkeys(["M", "K", "r", "x_m", "x_k", "a_r", "a_k", "threshold"], "i32")
types |= dict(x_ptr=x, a_ptr=adapter, s_ptr=adapter, seed_ptr="*i64", mask_ptr="*u8", scale="fp32")
constants = dict(DROPOUT=dropout, BM=32, BK=64, BR=16)
types = {name: types.get(name, "constexpr") for name in _lora_shrink.arg_names}
if not dropout:
    types["seed_ptr"], constants["seed_ptr"] = "constexpr", None
target = GPUTarget(backend, arch, 32 if backend == "cuda" else 64)
compiled = triton.compile(ASTSource(fn=_lora_shrink, signature=types, constexprs=constants), target=target)
text = compiled.asm["ptx" if backend == "cuda" else "amdgcn"]
print(json.dumps(dict(
    shared=compiled.metadata.shared,
    local=len(re.findall(r"(ld|st)\\.local", text)),
    wide_multiplies=len(re.findall(r"mul\\.(wide|hi)\\.u32|v_mul_hi_u32", text)),
)))
"""


@pytest.mark.parametrize("dropout", [True, False], ids=["dropout", "plain"])
@pytest.mark.parametrize("backend,arch", [("cuda", 80), ("cuda", 100), ("hip", "gfx942")])
def test_lora_shrink(backend, arch, dropout):
    arguments = json.dumps(["*bf16", "*bf16", backend, arch, dropout])
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE, arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["local"] == 0 and report["shared"] <= 48 << 10
    assert (report["wide_multiplies"] >= 7) == dropout  # seven rounds of 32x32-bit products
