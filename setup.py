"""Builds csrc/. Metadata and package lists live in pyproject.toml.

PYPEFT_FAST_BUILD = auto (default) | cpu | cuda | none: which libraries to build; auto is cpu. Kernels for CPUs and for
CUDA are separate libraries, so that the first loads under any PyTorch.
"""

import os
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

STABLE_ABI = "0x020a000000000000"  # the oldest torch a wheel runs on: 2.10
FLAGS = ["-O3", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden", f"-DTORCH_TARGET_VERSION={STABLE_ABI}"]


def paths(*patterns):
    return sorted(str(path) for pattern in patterns for path in Path("csrc").glob(pattern))


def extensions():
    build = os.environ.get("PYPEFT_FAST_BUILD", "auto")
    if build == "none":
        return []
    if build == "cuda" and not paths("cuda/*.cu"):
        raise SystemExit("PYPEFT_FAST_BUILD=cuda: csrc/cuda has no kernels in this version; choose auto, cpu or none")
    if build not in ("auto", "cpu"):
        raise SystemExit(f"PYPEFT_FAST_BUILD={build}: choose one of auto, cpu, cuda and none")
    return [
        CppExtension(
            "pypeft_fast._C",
            sources=paths("*.cpp", "cpu/**/*.cpp"),
            depends=paths("**/*.h"),
            include_dirs=[str(Path("csrc").resolve())],
            extra_compile_args=FLAGS,
            py_limited_api=True,
        )
    ]


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
