"""The process of a step. It leads its own process group, which is stopped by SIGINT first and then by SIGKILL.

A rehearsal forks its steps from one process that has imported PyTorch, since fourteen imports would take longer than
the steps. The fork runs the same module as `python -m` would.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

from .found import PATH

ROOT = Path(__file__).resolve().parents[2]
GRACE = 5.0  # seconds from SIGINT to SIGKILL, in which pytest prints its results


def environment(output, rehearsed):
    """The environment variables of every step: no network, this source tree, a tuning cache in the output folder."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH")]
    given = {
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYPEFT_FAST_CACHE": str(output / "cache"),
    }
    if rehearsed:
        given |= {"GPU_HOUR_REHEARSED": "1", "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    return given


def _lead():
    """Makes this process lead a new group and restores SIGINT, which background processes of a shell ignore."""
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Process:
    """A running step. `ended` is its exit status, None while it runs; a negative status is the number of a signal."""

    def __init__(self, step, output, given, forked):
        self.step, self.began = step, time.monotonic()
        self.log, self.found = output / f"logs/{step.name}.log", output / f"steps/{step.name}.found.json"
        self.found.unlink(missing_ok=True)
        given = given | {PATH: str(self.found)}
        arguments = [step.module, *step.arguments]
        if forked:
            self._process = multiprocessing.get_context("fork").Process(target=self._forked, args=(arguments, given))
            self._process.start()
        else:
            with self.log.open("w") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", *arguments], cwd=ROOT, env=os.environ | given, stdin=subprocess.DEVNULL,
                    stdout=log, stderr=subprocess.STDOUT, preexec_fn=_lead,
                )  # fmt: skip

    def _forked(self, arguments, given):
        _lead()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(ROOT)
        os.environ.update(given)
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)

    @property
    def seconds(self):
        return time.monotonic() - self.began

    @property
    def ended(self):
        if isinstance(self._process, subprocess.Popen):
            return self._process.poll()
        return self._process.exitcode

    def stop(self):
        """Ends the process and all its descendants."""
        for number, patience in ((signal.SIGINT, GRACE), (signal.SIGKILL, GRACE)):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                return
            end = time.monotonic() + patience
            while self.ended is None and time.monotonic() < end:
                time.sleep(0.02)
        # SIGKILL goes to the group even if the leader has ended at SIGINT, since workers may still run.
