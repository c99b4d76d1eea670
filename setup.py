"""Builds csrc/. Metadata and package lists live in pyproject.toml, GPU targets in csrc/cuda/targets.txt.

PYPEFT_FAST_BUILD selects the libraries to build: auto (default), cpu, cuda or none. cuda builds both libraries for the
targets in TORCH_CUDA_ARCH_LIST, or in csrc/cuda/targets.txt if the variable is not set. auto builds both for the GPUs
of this machine if PyTorch sees an NVIDIA GPU and a matching nvcc is found, else only the CPU library. The kernels for
CPUs and for CUDA are separate libraries, so that the CPU library loads under any PyTorch. The version of a build with
the CUDA library names the toolkit after a plus sign, as PyTorch's does: 0.1.0+cu130.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from setuptools import setup
from setuptools.command.build import build
from torch.utils import cpp_extension
from torch.utils.cpp_extension import BuildExtension, CppExtension

STABLE_ABI = "0x020a000000000000"  # 2.10, the oldest PyTorch that a wheel runs with
ABI = f"-DTORCH_TARGET_VERSION={STABLE_ABI}"
FLAGS = ["-O3", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden", ABI]
NVCC_FLAGS = ["-O3", "-std=c++20", "--compress-mode=size", "-Xcompiler", "-fvisibility=hidden", "-DUSE_CUDA", ABI]


def paths(*patterns):
    return sorted(str(path) for pattern in patterns for path in Path("csrc").glob(pattern))


def cuda_home():
    """The folder of the CUDA toolkit, or None. PyTorch itself looks for a toolkit only if it was built with CUDA.

    PyTorch takes the folder above the nvcc on PATH, but that nvcc may be a script or a link outside of the toolkit. So
    a folder that also has the headers is preferred.
    """
    nvcc = shutil.which("nvcc")
    homes = [cpp_extension.CUDA_HOME, os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    homes += [Path(nvcc).resolve().parents[1]] if nvcc else []
    found = [str(home) for home in homes if home and (Path(home) / "bin/nvcc").is_file()]
    return next((home for home in found if (Path(home) / "include/cuda_runtime.h").is_file()), next(iter(found), None))


def headers():
    """A flag that changes with the headers of csrc/cuda, since with a CPU build of PyTorch ninja does not track the
    headers that nvcc includes."""
    digest = hashlib.sha256(b"".join(Path(path).read_bytes() for path in paths("*.h", "cuda/**/*.*h")))
    return f"-DPYPEFT_FAST_HEADERS={digest.hexdigest()[:16]}"


def nvcc_release(home):
    """("13", "0") of nvcc 13.0; None if nvcc names no release."""
    said = subprocess.run([f"{home}/bin/nvcc", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release (\d+)\.(\d+)", said)
    return found and found.groups()


def why_not(home):
    """Why auto does not build csrc/cuda on this machine, or None. auto must not make an installation fail."""
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return "PyTorch sees no NVIDIA GPU"
    release = nvcc_release(home)
    wanted = max(13, int(torch.version.cuda.partition(".")[0]))
    if release is None:
        return f"{home}/bin/nvcc --version names no release"
    if int(release[0]) != wanted:
        return f"{home} has CUDA {release[0]}, but PyTorch for CUDA {torch.version.cuda} needs CUDA {wanted}"
    old = [i for i in range(torch.cuda.device_count()) if torch.cuda.get_device_capability(i) < (8, 0)]
    return f"cuda:{old[0]} is older than sm_80" if old else None


def extension(name, sources, flags, **options):
    return CppExtension(
        f"pypeft_fast.{name}",
        sources=sources,
        depends=paths("**/*.h"),
        include_dirs=[str(Path("csrc").resolve()), *options.pop("include_dirs", [])],
        extra_compile_args=flags,
        py_limited_api=True,
        **options,
    )


def cuda_extension(home):
    """csrc/cuda with the static CUDA runtime, linked with no shared library of CUDA and no CUDA library of PyTorch.

    The current stream comes from libtorch_cuda.so, which libtorch.so loads. libtorch.so itself defines no symbol, so a
    linker with --as-needed, the default of Debian's and Ubuntu's compilers, would drop it; hence --no-as-needed.
    """
    cpp_extension.CUDA_HOME = home
    return extension(
        "_C_cuda",
        paths("cuda/**/*.cu"),
        {"cxx": FLAGS, "nvcc": [*NVCC_FLAGS, headers()]},
        include_dirs=[f"{home}/include"],
        library_dirs=[f"{home}/lib64"],
        libraries=["cudart_static", "rt", "dl", "pthread"],
        extra_link_args=["-Wl,--push-state,--no-as-needed", "-ltorch", "-Wl,--pop-state"],
    )


def extensions():
    build, home = os.environ.get("PYPEFT_FAST_BUILD", "auto"), cuda_home()
    if build not in ("auto", "cpu", "cuda", "none"):
        raise SystemExit(f"PYPEFT_FAST_BUILD={build}: choose one of auto, cpu, cuda and none")
    if build == "cuda" and home is None:
        raise SystemExit(
            "PYPEFT_FAST_BUILD=cuda: no nvcc; set CUDA_HOME to the folder of a CUDA toolkit, 13.0 or later"
        )
    if build == "none":
        return []
    found = [extension("_C", paths("*.cpp", "cpu/**/*.cpp"), FLAGS)]
    if build == "cuda":
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", Path("csrc/cuda/targets.txt").read_text().strip())
    reason = why_not(home) if build == "auto" and home is not None else None
    if reason is not None:
        print(f"pypeft_fast: without CUDA C++ kernels: {reason}", file=sys.stderr)
    if build == "cuda" or (build == "auto" and home is not None and reason is None):
        found.append(cuda_extension(home))
    return found


class Build(build):
    """Starts without what earlier builds have left in build/lib*, because a wheel holds everything in that folder: also
    a CUDA library of an earlier `make wheel-cuda`, or a module that no longer exists. Object files in build/temp* stay.
    """

    def run(self):
        if Path(self.build_lib).parent == Path(self.build_base):
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


def local_version(modules):
    """The local part of the version, such as +cu130, by nvcc's release; "" without the CUDA library.

    Also "" for an sdist, which has no library; the setup.cfg in it would hand the part on to every build from it.
    """
    if "sdist" in sys.argv or not any(module.name == "pypeft_fast._C_cuda" for module in modules):
        return ""
    return "+cu" + "".join(nvcc_release(cuda_home()) or ())


modules = extensions()
setup(
    ext_modules=modules,
    cmdclass={"build": Build, "build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}, "egg_info": {"tag_build": local_version(modules)}},
)
