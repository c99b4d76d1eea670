"""compute-sanitizer over each CUDA C++ kernel: memcheck, then racecheck, on the cases of steps/launches.py."""

import itertools
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed

from pypeft_fast import _native, _own  # noqa: F401 - registers all ops
from pypeft_fast._op import OPS

from .. import device, found
from ..process import ROOT
from . import launches

TOOLS = ("memcheck", "racecheck")
ERRORS = re.compile(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard")


def path_of(tool):
    """The path of one of CUDA's tools, or None."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    folders = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)]
    return shutil.which(tool, path=os.pathsep.join(folders))


def checked(tool, check, op):
    """(name, number of errors or why the check did not run, the output) of one op's launches under one check."""
    command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-m", launches.__name__, op]
    # Without PyTorch's cache every tensor is a separate allocation, so memcheck detects accesses past its end.
    given = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=False)
    summary = [int(a or b) for a, b in ERRORS.findall(done.stdout)]
    ran = summary and done.returncode in (0, 9)
    return f"{check} {op}", summary[-1] if ran else "it did not run", done.stdout[-3000:] + done.stderr[-1000:]


def main():
    device.prepare()
    if device.REHEARSED:
        launches.main("lora_shrink")
    tool = path_of("compute-sanitizer")
    if tool is None:
        found.skip("compute-sanitizer is not on PATH nor in CUDA_HOME")
    if (reason := _native.missing_cuda()) is not None:
        found.skip(reason)
    ops = [name for name, op in OPS.items() if op.launches("cuda")]
    errors, runs = {}, list(itertools.product(TOOLS, ops))
    with ThreadPoolExecutor(device.workers(8)) as pool:
        for future in as_completed([pool.submit(checked, tool, *run) for run in runs]):
            name, count, said = future.result()
            print(f"== {name}: {count}", said, sep="\n", flush=True)
            errors[name] = count
            bad = {name: count for name, count in errors.items() if count}
            line = f"{len(errors)} of {len(runs)} runs, {len(bad)} with errors"
            found.keep(errors=errors, line=f"{line}: {', '.join(bad)}" if bad else line)
    if bad:
        sys.exit(f"compute-sanitizer: {bad}")


if __name__ == "__main__":
    main()
