"""A wheel with CUDA kernels, built without a GPU: its contents, its libraries, and its messages without CUDA.

`make wheel-cuda` builds a wheel for every target, or for those in TORCH_CUDA_ARCH_LIST, and gives it in
PYPEFT_FAST_CUDA_WHEEL. Otherwise the tests build a wheel for the oldest target.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from pypeft_fast import __version__

ROOT = Path(__file__).resolve().parents[1]
GIVEN = os.environ.get("PYPEFT_FAST_CUDA_WHEEL")
ASKED = os.environ.get("TORCH_CUDA_ARCH_LIST", (ROOT / "csrc/cuda/targets.txt").read_text())
TARGETS = ASKED.replace(";", " ").split() if GIVEN else ["8.0"]
OPS = {path.stem for path in (ROOT / "csrc/cuda").glob("*.cu") if "LIBRARY_IMPL(" in path.read_text()}
KERNEL = re.compile(r"__global__ void(?: __launch_bounds__\((?:[^()]|\([^()]*\))*\))?\s+(\w+)\(")
KERNELS = {name for path in (ROOT / "csrc/cuda").rglob("*.cu*") for name in KERNEL.findall(path.read_text())}
# The undefined names that are allowed besides those of glibc, libstdc++ and libgcc: PyTorch's C functions, which are
# the same in all releases, and Python's, in the CPU library alone. The CUDA runtime is linked statically, and no other
# library of CUDA is linked.
STABLE = {"_C_cuda.abi3.so": re.compile(r"aoti_torch_\w+|torch_\w+|_ITM_\w+|__gmon_start__")}
STABLE["_C.abi3.so"] = re.compile(rf"{STABLE['_C_cuda.abi3.so'].pattern}|Py[A-Z]\w+")
# Functions of libstdc++, from GCC 11 on, of which PyTorch's libc10.so exports copies that have no version. The linker
# finds the copies first, so that the libraries also load with the libstdc++ of older systems.
COPIED = re.compile(r"_ZN[KRO]*St7__cxx11\w+|_ZSt28__throw_bad_array_new_lengthv")
LIBRARIES = re.compile(r"lib(c10|torch_cpu|torch|stdc\+\+|gcc_s|c|m|dl|rt|pthread)\.so[.\d]*|ld-linux-\S+")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not GIVEN and not shutil.which("nvcc"), reason="no nvcc to build a CUDA wheel with"),
]


def run(*command, **environment):
    done = subprocess.run([*map(str, command)], env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if GIVEN:
        return Path(GIVEN)
    folder = tmp_path_factory.mktemp("cuda")
    ignored = shutil.ignore_patterns(".*", "build", "dist", "out", "*.egg-info", "*.so", "__pycache__")
    tree = shutil.copytree(ROOT, folder / "tree", symlinks=True, ignore=ignored)
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, tree)
    run(*build, PYPEFT_FAST_BUILD="cuda", TORCH_CUDA_ARCH_LIST=" ".join(TARGETS))
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """The folder of the unpacked wheel."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def library(site):
    return site / "pypeft_fast/_C_cuda.abi3.so"


def test_one_wheel_for_every_python_with_two_libraries(wheel, site):
    assert re.match(rf"pypeft_fast-{re.escape(__version__)}\+cu1\d\d-cp310-abi3-linux_", wheel.name)
    assert {p.name for p in (site / "pypeft_fast").glob("*.so")} == {"_C.abi3.so", "_C_cuda.abi3.so"}


def cuobjdump():
    found = shutil.which("cuobjdump", path=f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin:{os.environ['PATH']}")
    return found or Path(find_spec("triton").origin).parent / "backends/nvidia/bin/cuobjdump"


def test_every_kernel_is_there_for_every_target(library):
    """Machine code for each target, and PTX for later GPUs."""
    numbers = {target.removesuffix("+PTX").replace(".", ""): target.endswith("+PTX") for target in TARGETS}
    listed = run(cuobjdump(), "--list-elf", library) + run(cuobjdump(), "--list-ptx", library)
    print(listed)
    inside = Counter(re.findall(r"\.sm_(\w+)\.(cubin|ptx)$", listed, re.MULTILINE))
    kinds = {(n, kind) for n, ptx in numbers.items() for kind in ("cubin", "ptx") if ptx or kind == "cubin"}
    assert set(inside) == kinds
    assert len(set(inside.values())) == 1 and min(inside.values()) >= len(OPS)  # one for each source file
    entries = {number: entry_points(library, number) for number in numbers}
    first = next(iter(entries.values()))
    assert all(found == first for found in entries.values())
    for kernel in KERNELS:
        assert any(f"{len(kernel)}{kernel}" in name for name in first), f"no {kernel} in {library.name}"


def entry_points(library, number):
    """The mangled names of all kernels, with repetitions, without the part that identifies the file."""
    symbols = run(cuobjdump(), "-symbols", "-arch", f"sm_{number}", library)
    names = re.findall(r"STO_ENTRY +(\w+)", symbols)
    return sorted(re.sub(r"_GLOBAL__N__\w+?_cu_[0-9a-f]{8}", "", name) for name in names)


def undefined(library):
    """The undefined names of the library, without those of glibc, libstdc++ and libgcc, which have a version."""
    names = (line.split()[-1] for line in run("nm", "-D", "--undefined-only", library).splitlines())
    return {name for name in names if not re.search(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_", name)}


def test_it_links_to_the_stable_abi_only(library):
    needed = re.findall(r"NEEDED.*\[(.+)\]", run("readelf", "-d", library))
    assert [name for name in needed if not LIBRARIES.fullmatch(name)] == []
    assert "libtorch.so" in needed, "the linker left it out, and with it libtorch_cuda.so"
    assert "aoti_torch_get_current_cuda_stream" in undefined(library)


@pytest.mark.parametrize("name", STABLE)
def test_undefined_names_are_those_of_every_pytorch(site, name):
    left = {found for found in undefined(site / "pypeft_fast" / name) if not STABLE[name].fullmatch(found)}
    assert [found for found in sorted(left) if not COPIED.fullmatch(found)] == []
    exported = run("nm", "-D", "--defined-only", Path(torch.__file__).parent / "lib/libc10.so").split()
    assert left <= set(exported)


LOAD = """
import ctypes, sys
ctypes.CDLL(sys.argv[1])  # `import torch` finds it loaded, and as there its names are not for everyone
import torch
ops = torch.library.Library("pypeft_fast", "DEF")
torch.ops.load_library(sys.argv[2])
"""


@pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch has CUDA")
def test_it_loads_where_libtorch_brings_libtorch_cuda(library, tmp_path):
    """As in a PyTorch for CUDA, libtorch.so is empty and needs libtorch_cuda.so, which no other library needs."""
    stream, empty = tmp_path / "stream.c", tmp_path / "empty.c"
    stream.write_text("int aoti_torch_get_current_cuda_stream(int device, void** stream) { return 1; }\n")
    empty.write_text("")
    torch_lib = Path(torch.__file__).parent / "lib"
    shared = ("gcc", "-shared", "-fPIC", f"-Wl,-rpath,{tmp_path}:{torch_lib},--no-as-needed", f"-L{tmp_path}")
    run(*shared, stream, "-Wl,-soname,libtorch_cuda.so", "-o", tmp_path / "libtorch_cuda.so")
    needs = (f"-L{torch_lib}", "-ltorch_cpu", "-ltorch_cuda")
    run(*shared, empty, "-Wl,-soname,libtorch.so", *needs, "-o", tmp_path / "libtorch.so")
    run(sys.executable, "-c", LOAD, tmp_path / "libtorch.so", library)


USE = """
import sys
sys.path[:0] = [sys.argv[1]]
import torch, pypeft_fast as pf
from pypeft_fast.cli.info import collect
assert pf.__file__.startswith(sys.argv[1])
x, w, a, b = torch.ones(2, 3), torch.ones(4, 3), torch.ones(1, 3), torch.ones(4, 1)
with pf.recording() as ran:
    assert torch.equal(pf.lora_linear(x, w, a, b, scaling=0.5), torch.full((2, 4), 4.5))
assert {kernel for _, kernel in ran} == {"cpu"}, ran
try:
    with pf.using("cuda"):
        pf.lora_linear(x, w, a, b)
except RuntimeError as error:
    print(error)
print(*{kernels["cuda"] for kernels in pf.kernels().values() if "cuda" in kernels}, sep="; ")
print(collect()["build"]["cuda_library"])
"""


@pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch has CUDA")
def test_on_a_pytorch_without_cuda_the_cpu_kernels_run_and_the_others_say_why_not(site):
    forced, listed, told = run(sys.executable, "-c", USE, site).splitlines()
    reason = f"_C_cuda.abi3.so needs a PyTorch with CUDA; this one, {torch.__version__}, has none"
    assert listed == told == reason
    assert "kernel 'cuda' cannot run: it runs on cuda, not on cpu" in forced
