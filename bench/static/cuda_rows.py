"""The rows of the CUDA C++ kernels in the static report, read from the library that nvcc builds for every target.

The number of threads is that of the kernel's __launch_bounds__. The size of dynamic shared memory is set at launch and
is not in the binary: the emulator in tests/emulator runs every kernel and gives the largest size of each kernel. A
kernel that the emulator does not run is an error.
"""

import collections
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from .loop import TENSOR_CORES, step
from .row import Row

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build/cuda"
WIDTHS = {"128": "16", "64": "8", "U8": "1", "S8": "1", "U16": "2", "S16": "2"}
# Matches the template arguments of a kernel for operands of any strides, which are read element by element: a Fill, or
# kAsync of the product.
ANY_STRIDES = re.compile(r"\(Fill\)2|Math<.*?>, (?:true|false), false\b")
WITHOUT_TENSOR_CORES = ("dequantize_kernel", "segmented_shrink_kernel")  # no product, or one row times a matrix
TYPES = {"Parts": "bf16+fp32", "__nv_bfloat16": "bf16", "__half": "fp16", "float": "fp32"}


def library() -> Path:
    """Builds build/cuda/pypeft_fast/_C_cuda.abi3.so for the targets in csrc/cuda/targets.txt, and returns the path."""
    environment = {k: v for k, v in os.environ.items() if k != "TORCH_CUDA_ARCH_LIST"} | {"PYPEFT_FAST_BUILD": "cuda"}
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(BUILD)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"csrc/cuda does not build:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return BUILD / "pypeft_fast/_C_cuda.abi3.so"


@functools.cache
def shared_bytes() -> dict[str, int]:
    """{name as in _demangled: bytes of shared memory of a block}, from a run of every kernel on the emulator."""
    command = [sys.executable, "-m", "tests.emulator.launches"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"csrc/cuda does not run on the emulator:\n{done.stderr[-4000:]}")
    found = json.loads(done.stdout)
    return {name: found[mangled] for mangled, name in _demangled(found).items()}


@functools.cache
def _cuobjdump() -> str:
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    found = shutil.which("cuobjdump", path=os.pathsep.join(f"{home}/bin" for home in homes if home))
    return found or str(Path(find_spec("triton").origin).parent / "backends/nvidia/bin/cuobjdump")


def _dump(path: Path, *options: str) -> str:
    return subprocess.run([_cuobjdump(), *options, path], capture_output=True, text=True, check=True).stdout


def _demangled(names) -> dict[str, str]:
    """{mangled name: the kernel's name and template arguments, without namespaces and parameters}."""
    names = list(names)
    lines = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    plain = (re.sub(r"pypeft::|\(anonymous namespace\)::|^void ", "", line) for line in lines.splitlines())
    return {name: line.rpartition("(")[0] for name, line in zip(names, plain, strict=True)}


def _per_function(text: str, header: str) -> dict[str, str]:
    """{mangled name: the text about this function}."""
    pieces = re.split(header, text)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def _loads(sass: str) -> collections.Counter:
    found = collections.Counter()
    for instruction in re.findall(r"\b(?:LDG|LDGSTS)\.[\w.]+", sass):
        width = re.search(r"\.(128|64|U8|S8|U16|S16)\b", instruction)
        found[WIDTHS[width[1]] if width else "4"] += 1
    return found


def rows(targets, path: Path | None = None):
    """One row for each kernel, each instance of its template, and each target in csrc/cuda/targets.txt."""
    path = path or library()
    for entry in (ROOT / "csrc/cuda/targets.txt").read_text().split():
        architecture = "sm_" + entry.removesuffix("+PTX").replace(".", "")
        target = architecture.rstrip("a")
        if target not in targets:
            continue
        usage = _per_function(
            _dump(path, "--dump-resource-usage", "--gpu-architecture", architecture), r"Function (\S+):\n"
        )
        sass = _per_function(_dump(path, "-sass", "--gpu-architecture", architecture), r"Function : (\S+)\n")
        elf = _dump(path, "-elf", "--gpu-architecture", architecture)
        threads = {
            name: int(bound, 16)
            for name, bound in re.findall(
                r"^\.nv\.info\.(\S+)\n(?:(?!^\.nv\.info\.).*\n)*?.*EIATTR_MAX_THREADS\n.*\n.*Value:\s*(0x\w+)",
                elf,
                re.M,
            )
        }
        for mangled, name in sorted(_demangled(usage).items(), key=lambda pair: pair[1]):
            kernel, _, arguments = name.partition("<")
            registers, stack = (int(re.search(rf"{what}:(\d+)", usage[mangled])[1]) for what in ("REG", "STACK"))
            if name not in shared_bytes():
                raise SystemExit(f"{name}: tests/emulator/launches.py has no case that runs it")
            shared = int(re.search(r"SHARED:(\d+)", usage[mangled])[1]) + shared_bytes()[name]
            local = len(re.findall(r"\b(?:LDL|STL)\b", sass[mangled]))
            tensor_core = dict(collections.Counter(re.findall(TENSOR_CORES, sass[mangled])))
            dtypes = next((short for long, short in TYPES.items() if long in arguments), "any")
            yield Row(
                kernel, "cuda", target, arguments.rstrip("> "), dtypes, threads[mangled] // 32, registers,
                stack if local else 0, local, shared, tensor_core, dict(sorted(_loads(sass[mangled]).items())),
                None if kernel in WITHOUT_TENSOR_CORES else next(iter(tensor_core), "HMMA"),
                wants_wide_loads=not ANY_STRIDES.search(arguments), step=step(sass[mangled]),
            )  # fmt: skip
