"""compute-sanitizer over each CUDA C++ kernel: memcheck, then racecheck, on the cases of steps/launches.py."""

import os
import re
import shutil
import subprocess
import sys

from pypeft_fast import _native, _own  # noqa: F401 - all ops are there
from pypeft_fast._op import OPS

from .. import device, found
from ..process import ROOT
from . import launches

TOOLS = ("memcheck", "racecheck")
ERRORS = re.compile(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard")


def path_of(tool):
    """Where one of CUDA's tools is, or None."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    folders = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)]
    return shutil.which(tool, path=os.pathsep.join(folders))


def main():
    device.prepare()
    if device.REHEARSED:
        launches.main("lora_shrink")
    tool = path_of("compute-sanitizer")
    if tool is None:
        found.skip("compute-sanitizer is not on PATH nor in CUDA_HOME")
    if (reason := _native.missing_cuda()) is not None:
        found.skip(reason)
    ops = [op for op in OPS if any(kernel.name == "cuda" for kernel in OPS[op].kernels)]
    # Without PyTorch's cache every tensor is an allocation of its own, past whose end memcheck sees.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    errors = {}
    for check in TOOLS:
        for op in ops:
            command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-m", launches.__name__, op]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
            print(f"== {check} {op}: exit status {done.returncode}", done.stdout[-3000:], done.stderr[-1000:], sep="\n")
            summary = [int(a or b) for a, b in ERRORS.findall(done.stdout)]
            errors[f"{check} {op}"] = summary[-1] if summary and done.returncode in (0, 9) else "it did not run"
            bad = {name: count for name, count in errors.items() if count}
            line = f"{len(errors)} of {len(TOOLS) * len(ops)} runs, {len(bad)} with errors"
            found.keep(errors=errors, line=f"{line}: {', '.join(bad)}" if bad else line)
    if bad:
        sys.exit(f"compute-sanitizer: {bad}")


if __name__ == "__main__":
    main()
