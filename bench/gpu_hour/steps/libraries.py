"""Uses the libraries of csrc/ in the tree if they load and have code for this GPU; else builds them for this GPU."""

import os
import subprocess
import sys
import time

import torch

from pypeft_fast import _native

from .. import device, found
from ..process import ROOT


def why_build():
    """The reason to build the CUDA library, or None if it exists, loads and has code for this GPU."""
    if _native.missing_cuda() is not None:
        return _native.missing_cuda()
    return _native.too_old(torch.device("cuda"))


def command():
    """(command, environment) that builds csrc/ for this GPU, next to the Python files."""
    major, minor = (9, 0) if device.REHEARSED else torch.cuda.get_device_capability()
    feature = "a" if (major, minor) in ((9, 0), (10, 0)) else ""  # as csrc/cuda/targets.txt has them
    given = {"PYPEFT_FAST_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}{feature}"}
    given["MAX_JOBS"] = str(len(os.sched_getaffinity(0)))
    return [sys.executable, "setup.py", "build_ext", "--inplace"], given


def sizes():
    return {path.name: path.stat().st_size for path in sorted((ROOT / "pypeft_fast").glob("_C*.so"))}


def main():
    device.prepare()
    reason = why_build()
    if reason is None:
        found.keep(libraries=sizes(), built=False, line=f"existing libraries: {sizes()}")
        return
    build, given = command()
    print(reason, given, build, sep="\n", flush=True)
    found.keep(libraries=sizes(), built=False, reason=reason, line=f"not built: {reason}")
    if device.REHEARSED:
        return
    began = time.perf_counter()
    done = subprocess.run(build, cwd=ROOT, env=os.environ | given, check=False)
    seconds = round(time.perf_counter() - began, 1)
    if done.returncode != 0:
        found.keep(libraries=sizes(), built=False, reason=reason, seconds=seconds)
        sys.exit("csrc/ does not build here: the later steps have only Triton's and PyTorch's kernels")
    found.keep(libraries=sizes(), built=True, reason=reason, seconds=seconds, line=f"built in {seconds} s: {sizes()}")


if __name__ == "__main__":
    main()
