"""python -m bench.gpu_hour.steps.tests PATH...: runs tests of this tree on the GPU, and writes the outcomes so far.

A rehearsal collects the tests as on a GPU, and runs none.
"""

import os
import re
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from .. import device, found
from ..process import ROOT

NEEDED = ("peft", "transformers", "hypothesis")
IMPORTS = re.compile(rf"^(?:import|from) ({'|'.join(NEEDED)})\b", re.M)


def left_out(paths):
    """{test file: the package that it imports and this Python lacks}"""
    missing = {name for name in NEEDED if find_spec(name) is None}
    files = [f for path in paths for f in ([ROOT / path] if path.endswith(".py") else (ROOT / path).rglob("*.py"))]
    named = {file: missing & set(IMPORTS.findall(Path(file).read_text())) for file in files}
    return {str(file.relative_to(ROOT)): ", ".join(sorted(names)) for file, names in named.items() if names}


class Outcomes:
    """A pytest plugin that counts outcomes; with pytest-xdist it gets the reports of all workers."""

    def __init__(self, without):
        self.counts, self.failed, self.without, self.written = {}, {}, without, 0.0

    def pytest_collection_finish(self, session):
        self.counts["collected"] = len(session.items)
        self.keep()

    def pytest_collectreport(self, report):
        if report.failed:
            self.failed[report.nodeid] = str(report.longrepr)[-600:]

    def pytest_runtest_logreport(self, report):
        if report.failed or report.when == "call" or (report.when == "setup" and report.skipped):
            self.counts[report.outcome] = self.counts.get(report.outcome, 0) + 1
        if report.failed:
            self.failed[report.nodeid] = str(report.longrepr)[-600:]
        if report.failed or time.monotonic() - self.written > 0.5:
            self.keep()

    def keep(self):
        self.written = time.monotonic()
        line = ", ".join(f"{count} {outcome}" for outcome, count in self.counts.items())
        if self.without:
            missing = ", ".join(sorted(set(self.without.values())))
            line += f"; not run: {', '.join(self.without)}, since this Python lacks {missing}"
        found.keep(counts=self.counts, failed=self.failed, left_out=self.without, line=line)


def main(paths):
    os.environ["PYPEFT_TEST_DEVICE"] = "cuda"
    os.environ.pop("TRITON_INTERPRET", None)
    without = left_out(paths)
    arguments = [*paths, "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    arguments += [f"--ignore={file}" for file in without]
    outcomes = Outcomes(without)
    plugins = [outcomes]
    if device.REHEARSED:
        from .. import faked

        plugins.append(faked)
        arguments += ["--collect-only", "-qq"]
    elif find_spec("xdist") is not None:
        arguments += ["-n", str(device.workers(8))]
    status = pytest.main(arguments, plugins)
    outcomes.keep()
    if outcomes.failed:
        sys.exit(f"{len(outcomes.failed)} failed, the first: {next(iter(outcomes.failed))}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
