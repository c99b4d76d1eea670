"""The machine, and the versions of its Python packages. SystemExit if PyTorch or Triton is too old, or sees no GPU."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys

import torch

import pypeft_fast as pf
from pypeft_fast import _own  # noqa: F401 - registers all ops

from .. import device, found

PACKAGES = ("torch", "triton", "numpy", "transformers", "peft", "safetensors", "pytest", "pytest-xdist", "setuptools",
            "ninja")  # fmt: skip
LEAST = {"torch": (2, 10), "triton": (3, 6)}
TOOLS = ("nvidia-smi", "nvcc", "compute-sanitizer", "ncu")


def versions():
    """{package: version or None}"""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def too_old(versions):
    """Why these versions cannot be used, or None."""
    for name, least in LEAST.items():
        wanted = ".".join(map(str, least))
        if versions[name] is None:
            return f"{name} is not installed; {name} >= {wanted} is needed"
        if tuple(int(part) for part in versions[name].split("+")[0].split(".")[:2]) < least:
            return f"{name} is {versions[name]}; {name} >= {wanted} is needed"
    return None


def said(tool, *arguments):
    """The output of a tool, or None if the tool is not installed."""
    path = shutil.which(tool)
    if path is None:
        return None
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False, timeout=20)
    return (done.stdout + done.stderr).strip()


def main():
    here = versions()
    about = {
        "python": sys.version.split()[0], "platform": platform.platform(), "cpus": len(os.sched_getaffinity(0)),
        "packages": here, "tools": {tool: shutil.which(tool) for tool in TOOLS},
        "nvidia-smi": said("nvidia-smi"), "nvcc": said("nvcc", "--version"),
    }  # fmt: skip
    found.keep(**about)
    if (reason := too_old(here)) is not None:
        sys.exit(reason)
    device.prepare()
    about |= {"machine": device.machine(), "kernels": pf.kernels()}
    print(about["nvidia-smi"], about["nvcc"], about["machine"], about["kernels"], sep="\n")
    gpu = about["machine"]["gpu"]
    found.keep(**about, line=f"{gpu}, torch {torch.__version__}, triton {here['triton']}, python {about['python']}")


if __name__ == "__main__":
    main()
