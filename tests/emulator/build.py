"""Compiles the emulator with csrc/cuda, or with the programs of the tests.

Each source file is one object, which is cached under a hash of the source, its headers and the flags. A change of one
kernel therefore compiles one file.
"""

import fcntl
import hashlib
import importlib.util
import os
import re
import subprocess
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CACHE = ROOT / "build" / "emulator"
FOLDERS = HERE / "include", HERE / "src", ROOT / "csrc"  # of headers, in search order
INCLUDED = re.compile(r'^#include [<"](.+)[>"]', re.M)
FLAVOURS = {
    "plain": ["-O1"],
    # -O1 and frame pointers keep the stacks of the fibers small. fiber.h tells AddressSanitizer about these stacks.
    "sanitized": ["-O1", "-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined"],
    "portable": ["-O1", "-DEMULATOR_UCONTEXT"],
}
SOURCES = {
    "kernels": lambda: sorted((ROOT / "csrc/cuda").rglob("*.cu")),
    "programs": lambda: sorted((HERE / "programs").glob("*.cu")),
}


def cuda_include() -> Path:
    """The folder of cuda_bf16.h, from a toolkit or from the packages in requirements-dev.txt."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    packages = importlib.util.find_spec("nvidia")
    homes += [Path(p) / "cu13" for p in packages.submodule_search_locations] if packages else []
    for folder in (Path(home) / "include" for home in homes if home):
        if all((folder / name).is_file() for name in ("cuda_bf16.h", "crt/host_defines.h", "nv/target")):
            return folder
        if (folder / "cccl/nv/target").is_file() and (folder / "cuda_bf16.h").is_file():
            return folder
    raise RuntimeError(
        "the emulator needs CUDA's headers: set CUDA_HOME to a toolkit's folder, or "
        "pip install nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl"
    )


def _flags(flavour: str) -> list[str]:
    includes = [argument for folder in FOLDERS for argument in ("-I", folder)]
    for folder in (cuda_include(), cuda_include() / "cccl", *include_paths()):
        includes += ["-isystem", folder]
    return [
        *("-std=c++20", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-Wall", "-Wextra", "-Werror"),
        "-Wno-unknown-pragmas",  # "#pragma unroll" is for nvcc
        # Each access in the source must stay one place in the code: the counters identify requests by return address.
        *("-fno-crossjumping", "-fno-thread-jumps", "-fno-tree-dominator-opts"),
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        *FLAVOURS[flavour],
        *map(str, includes),
    ]


def _with_included(file: Path, seen: dict[Path, bytes]) -> dict[Path, bytes]:
    """{path: bytes} of the file and of the project's headers that it includes."""
    seen[file] = file.read_bytes()
    for name in INCLUDED.findall(seen[file].decode()):
        found = (folder / name for folder in (file.parent, *FOLDERS))
        path = next((path for path in found if path.is_file()), None)
        if path is not None and path not in seen:
            _with_included(path, seen)
    return seen


def _compile(source: Path, flags: list[str]) -> Path:
    texts = [text for _, text in sorted(_with_included(source, {}).items())]
    digest = hashlib.sha256(repr((texts, flags, torch.__version__)).encode()).hexdigest()[:16]
    out = CACHE / f"{source.stem}-{digest}.o"
    if not out.exists():
        temporary = out.with_suffix(f".{os.getpid()}")
        _run("g++", *flags, "-x", "c++", "-c", source, "-o", temporary)
        temporary.replace(out)
    return out


def _run(*command) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the emulator does not compile: {' '.join(map(str, command))}\n{done.stderr[-6000:]}")


def build(what: str, flavour: str = os.environ.get("PYPEFT_EMULATOR", "plain"), defines: tuple[str, ...] = ()) -> Path:
    """The path of the library of "kernels" or "programs", which is built if it does not exist."""
    CACHE.mkdir(parents=True, exist_ok=True)
    sources = [*sorted((HERE / "src").glob("*.cpp")), *SOURCES[what]()]
    flags = [*_flags(flavour), *(f"-D{define}" for define in defines)]
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several test processes one builds, and the others wait
        objects = [_compile(source, flags) for source in sources]
        digest = hashlib.sha256(repr(objects).encode()).hexdigest()[:16]
        out = CACHE / f"{what}-{flavour}-{digest}.so"
        if not out.exists():
            libraries = ["-L", Path(torch.__file__).parent / "lib", "-ltorch_cpu"]
            _run("g++", "-shared", *FLAVOURS[flavour], *objects, *libraries, "-o", out)
    return out


if __name__ == "__main__":
    for what in SOURCES:
        print(build(what))
