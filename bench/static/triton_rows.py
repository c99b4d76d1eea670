"""The rows of the Triton kernels in the static report: each op's own launch is intercepted, and the kernel compiled.

This file repeats nothing about a kernel: argument types, alignment and constants are those of the launch.
"""

import collections
import contextlib
import functools
import multiprocessing
import os
import re
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from pypeft_fast._op import OPS
from pypeft_fast.kernels import _tiles

from .loop import TENSOR_CORES, step
from .plan import arguments, plan
from .row import Row

BIN = Path(triton.__file__).parent / "backends/nvidia/bin"
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.uint8: "u8",
         torch.int32: "i32", torch.int64: "i64"}  # fmt: skip


@contextlib.contextmanager
def fp32_precision(value):
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, value
    try:
        yield
    finally:
        matmul.fp32_precision = before


def captured(job):
    """(kernel, {argument: value}, options) of the job's launch; no kernel of the op runs."""
    launched, found = [], []

    def run(kernel, *args, grid, warmup, **kwargs):
        options = {k: kwargs.pop(k) for k in ("num_warps", "num_stages") if k in kwargs}
        launched.append((kernel, dict(zip(kernel.arg_names, args, strict=False)) | kwargs, options))

    def launch(name, go, operands, sizes, *options):
        if name == job.tuned:
            go(job.tiles)
            found.append(launched[-1])

    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(_tiles, "architecture", lambda device: job.arch),
        mock.patch.object(_tiles, "processors", lambda device: 132),
        mock.patch.object(_tiles, "launch", launch),
        fp32_precision("tf32" if job.tf32 else "ieee"),
    ):
        OPS[job.op].function(job.kernel)(*arguments(job))
    (one,) = found
    return one


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
        elif isinstance(value, tuple):  # of tensors
            types[name] = tuple(f"*{NAMES[tensor.dtype]}" for tensor in value)
            attributes |= {(at, i): [["tt.divisibility", 16]] for i in range(len(value))}
        elif isinstance(value, float):
            types[name] = "fp32"
        else:
            types[name], aligned = "i32" if abs(value) < 2**31 else "i64", value % 16 == 0
        if aligned:
            attributes[(at,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=attributes)


# The axes of the tile of the long operand that one step of these kernels reads.
LONG = {"lora_shrink": ("BM", "BK"), "lora_ds_db": ("BM", "BN"), "lora_da": ("BM", "BK")}


def compiled(job):
    return _compiled(job, *captured(job))


def _compiled(job, kernel, values, options):
    nvidia = isinstance(job.arch, int)
    device = GPUTarget("cuda", job.arch, 32) if nvidia else GPUTarget("hip", job.arch, 64)
    return triton.compile(source(kernel, values), target=device, options=options)


def _nvidia(binary):
    """registers, spills, local, tensor_core, loads, specialized, step of a cubin."""
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
    tensor_core = collections.Counter(re.findall(TENSOR_CORES, sass))
    specialized = len(re.findall(r"\bUSETMAXREG", sass))
    return registers, stack if local else 0, local, tensor_core, loads, specialized, step(sass)


def _amd(binary):
    text = binary.asm["amdgcn"]
    registers, spills = (int(re.search(rf"\.{name}:\s+(\d+)", text)[1]) for name in ("vgpr_count", "vgpr_spill_count"))
    widths = {"dwordx4": "16", "dwordx2": "8", "dword": "4", "ushort": "2", "short": "2", "ubyte": "1"}
    found = re.findall(r"\b(?:buffer|global)_load_(?:lds_)?(dwordx4|dwordx2|dword|ushort|short|ubyte)\b", text)
    loads = collections.Counter(widths[w] for w in found)
    local = len(re.findall(r"\bscratch_(?:load|store)", text))
    tensor_core = collections.Counter({"MFMA": len(re.findall(r"\bv_mfma_", text))})
    return registers, 4 * spills, local, tensor_core, loads, 0, None


def _planned(job, found):
    """The tensor-core instruction that the kernel must have, or None; by default the first one that was found."""
    if job.exact() or job.op in _tiles.ELEMENTWISE:
        return None
    if job.target == "gfx942":
        return "MFMA"
    if job.like in _tiles.GEMMS and job.bits == 16 and job.tiles.BM >= 64 and job.target in ("sm_90", "sm_100"):
        return {"sm_90": "HGMMA", "sm_100": "UTCHMMA"}[job.target]
    return next(iter(found), "HMMA")


def row(job):
    kernel, values, options = captured(job)
    binary = _compiled(job, kernel, values, options)
    read = _amd if job.target == "gfx942" else _nvidia
    registers, spills, local, tensor_core, loads, specialized, instructions = read(binary)
    axes = LONG.get(job.like)
    return Row(
        job.title, "triton", job.target, str(job.tiles), job.dtypes, binary.metadata.num_warps, registers, spills,
        local, binary.metadata.shared, dict(tensor_core), dict(sorted(loads.items())), _planned(job, tensor_core),
        specialized if job.tiles.specialize else None,
        wants_wide_loads=job.tuned not in ("dequantize", "low_rank"),  # most of their bytes are stores
        step=instructions, elements=values[axes[0]] * values[axes[1]] if axes else None,
    )  # fmt: skip


def rows(targets, jobs=None):
    """One row per job, in order; by default for all planned jobs of the targets."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("TRITON_INTERPRET=1 is set: with Triton's interpreter no kernel can be compiled; unset it")
    jobs = list(plan(targets)) if jobs is None else jobs
    # fork: the workers get the imported modules, and no thread has been started yet that a fork would lose.
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=multiprocessing.get_context("fork")) as pool:
        yield from pool.map(row, jobs)
