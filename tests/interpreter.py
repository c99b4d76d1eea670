"""Runs programs in a new Python process, for tests of imports, of commands and of `bench`."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def python(*arguments, folder=ROOT, timeout=120, expect_success=False, **environment):
    """Runs `python *arguments` in `folder`, with this repository on its path; returns a subprocess.CompletedProcess.

    stdout and stderr are strings. `environment` is added to os.environ. With `expect_success` an exit status other than
    0 fails the test and shows the end of stderr.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0 or not expect_success, done.stderr[-4000:]
    return done
