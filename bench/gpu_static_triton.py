"""Triton's rows of the static report: each op's own launch is intercepted, and what it would launch is compiled.

Nothing about a kernel is repeated here: argument types, alignment and constants are those of the launch.
"""

import collections
import functools
import importlib
import os
import re
import subprocess
import tempfile
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from pypeft_fast.kernels import _tiles

from .gpu_static import Row

BF16, F32 = torch.bfloat16, torch.float32
BIN = Path(triton.__file__).parent / "backends/nvidia/bin"
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.uint8: "u8",
         torch.int32: "i32", torch.int64: "i64"}  # fmt: skip
M, K, N, RANK = 4096, 4096, 4096, 16
TENSOR_CORES = r"\b(HGMMA|UTCHMMA|UTCQMMA|HMMA|IMMA)\b"


def calls(x=BF16, adapter=BF16):
    """{name of the row: (op, arguments)} of a launch of each kernel."""
    matrix = functools.partial(torch.empty, dtype=x)
    A, B = torch.empty(RANK, K, dtype=adapter), torch.empty(N, RANK, dtype=adapter)
    s, seed = torch.empty(M, RANK, dtype=adapter), torch.empty(1, dtype=torch.int64)
    three, seeds = torch.empty(3 * RANK, K, dtype=adapter), torch.empty(3, dtype=torch.int64)
    mask = torch.empty(M, K // 8, dtype=torch.uint8)
    X, dY, W, bias = matrix(M, K), matrix(M, N), matrix(N, K), matrix(N)
    return {
        "lora_shrink": ("lora_shrink", (X, A, 0, 1.0, None)),
        "lora_shrink, dropout": ("lora_shrink", (X, A, 3277, 1.05, seed)),
        "lora_shrink, dropout, 3 groups": ("lora_shrink", (X, three, 3277, 1.05, seeds)),
        "lora_shrink, dropout, split K": ("lora_shrink", (X[:64], A, 3277, 1.05, seed)),
        "lora_linear": ("lora_linear", (X, W, bias, s, B, 2.0)),
        "lora_ds_db": ("lora_ds_db", (dY, B, s, 2.0, True, True)),
        "lora_dx": ("lora_dx", (dY, W, s, A, mask, None)),
        "lora_dx, dropout": ("lora_dx", (dY, W, s, A, mask, 1.05)),
        "lora_da, dropout": ("lora_da", (s, X, mask, 1.05, adapter)),
        "ia3_linear": ("ia3_linear", (X, W, bias, matrix(N), False, True)),
        "ia3_linear, feedforward": ("ia3_linear", (X, W, bias, matrix(K), True, False)),
        "ia3_dx_dl": ("ia3_dx_dl", (dY, W, matrix(N), dY, False, True, True)),
        "ia3_dx_dl, feedforward": ("ia3_dx_dl", (dY, W, matrix(K), X, True, True, True)),
        "swiglu": ("swiglu", (dY, matrix(M, N))),
        "swiglu_backward": ("swiglu_backward", (dY, matrix(M, N), matrix(M, N), True)),
    }


def captured(op, arguments, arch, config):
    """(kernel, {argument: value}, options) of every launch of the op, with nothing launched."""
    found = []

    def run(kernel, *args, grid, warmup, **kwargs):
        options = {k: kwargs.pop(k) for k in ("num_warps", "num_stages") if k in kwargs}
        found.append((kernel, dict(zip(kernel.arg_names, args, strict=False)) | kwargs, options))

    def launch(name, go, operands, sizes):
        go(config)

    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(_tiles, "architecture", lambda device: arch),
        mock.patch.object(_tiles, "processors", lambda device: 132),
        mock.patch.object(_tiles, "launch", launch),
    ):
        getattr(importlib.import_module(f"pypeft_fast.kernels.{op}"), op)(*arguments)
    return found


def source(kernel, values):
    """The kernel with its arguments' types, as Triton's own launch would specialise them."""
    types, constants, attributes = {}, {}, {}
    for at, name in enumerate(kernel.arg_names):
        value = values[name]
        aligned = False
        if kernel.params[at].is_constexpr or value is None or (type(value) is int and value == 1):
            types[name], constants[name] = "constexpr", value
        elif isinstance(value, TensorDescriptor):
            types[name] = f"tensordesc<{NAMES[value.base.dtype]}{list(value.block_shape)}>"
        elif isinstance(value, torch.Tensor):
            types[name], aligned = f"*{NAMES[value.dtype]}", True
        elif isinstance(value, float):
            types[name] = "fp32"
        else:
            types[name], aligned = "i32" if abs(value) < 2**31 else "i64", value % 16 == 0
        if aligned:
            attributes[(at,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=attributes)


def compiled(kernel, values, options, target):
    arch = int(target[3:]) if target.startswith("sm_") else target
    device = GPUTarget("cuda", arch, 32) if isinstance(arch, int) else GPUTarget("hip", arch, 64)
    return triton.compile(source(kernel, values), target=device, options=options)


def _nvidia(binary):
    """registers, spills, local, tensor_core, loads of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        run = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
        usage = run([BIN / "cuobjdump", "--dump-resource-usage", file.name]).stdout
        sass = run([BIN / "cuobjdump", "-sass", file.name]).stdout
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    loads = collections.Counter()
    for instruction in re.findall(r"\b(?:LDG|LDGSTS)\.[\w.]+|\bUTMALDG\b", sass):
        bits = re.search(r"\.(128|64|U8|S8|U16|S16)\b", instruction)
        width = {"128": "16", "64": "8", "U8": "1", "S8": "1", "U16": "2", "S16": "2"}
        loads["TMA" if instruction == "UTMALDG" else width[bits[1]] if bits else "4"] += 1
    local = len(re.findall(r"\b(?:LDL|STL)\b", sass))
    return registers, stack if local else 0, local, collections.Counter(re.findall(TENSOR_CORES, sass)), loads


def _amd(binary):
    text = binary.asm["amdgcn"]
    registers, spills = (int(re.search(rf"\.{name}:\s+(\d+)", text)[1]) for name in ("vgpr_count", "vgpr_spill_count"))
    widths = {"dwordx4": "16", "dwordx2": "8", "dword": "4", "ushort": "2", "short": "2", "ubyte": "1"}
    found = re.findall(r"\b(?:buffer|global)_load_(?:lds_)?(dwordx4|dwordx2|dword|ushort|short|ubyte)\b", text)
    loads = collections.Counter(widths[w] for w in found)
    local = len(re.findall(r"\bscratch_(?:load|store)", text))
    return registers, 4 * spills, local, collections.Counter({"MFMA": len(re.findall(r"\bv_mfma_", text))}), loads


def _planned(op, target):
    if op in _tiles.ELEMENTWISE:
        return None
    if target == "gfx942":
        return "MFMA"
    if op in _tiles.GEMMS and target in ("sm_90", "sm_100"):
        return {"sm_90": "HGMMA", "sm_100": "UTCHMMA"}[target]
    return None


def row(name, op, launch, target, config, dtypes):
    kernel, values, options = launch
    binary = compiled(kernel, values, options, target)
    registers, spills, local, tensor_core, loads = (_amd if target == "gfx942" else _nvidia)(binary)
    planned = _planned(op, target)
    if planned is None and op not in _tiles.ELEMENTWISE:  # the bandwidth-bound kernels: any tensor-core instruction
        planned = next(iter(tensor_core), "HMMA")
    return Row(
        name, "triton", target, str(config), dtypes, binary.metadata.num_warps, registers, spills, local,
        binary.metadata.shared, dict(tensor_core), dict(sorted(loads.items())), planned,
    )  # fmt: skip


def rows(targets, names=None, mixed=True):
    """A row of each kernel and target, for bf16 and, if mixed, for float32 adapters over bf16."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("TRITON_INTERPRET=1 is set: in the interpreter's process nothing can be compiled; unset it")
    for target in targets:
        arch = int(target[3:]) if target.startswith("sm_") else target
        for adapter in (BF16, F32) if mixed else (BF16,):
            for name, (op, arguments) in calls(BF16, adapter).items():
                if (names is not None and name not in names) or (adapter == F32 and op.startswith(("ia3", "swiglu"))):
                    continue
                config = _tiles.default(op, arch, 32 if adapter == F32 and op not in _tiles.GEMMS else 16)
                (launch,) = captured(op, arguments, arch, config)
                yield row(name, op, launch, target, config, "bf16" if adapter == BF16 else "bf16+fp32")
