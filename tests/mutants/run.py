"""Whether the tests fail for typical mistakes: python -m tests.mutants.run [--list] [--only NAME...]

Each mutation is applied to a copy of the tree. The tests of the mutation run in this copy until one fails, which kills
the mutation. At the end the failed tests run again without a mutation, and must pass. The exit status is 0 if all
mutations are killed except those marked as equivalent, and if no mutation was impossible to try.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pypeft_fast import _native

from . import csrc, cuda, library, python, triton
from .mutation import ROOT

MUTATIONS = [*csrc.MUTATIONS, *triton.MUTATIONS, *cuda.MUTATIONS, *python.MUTATIONS]
ISAS = ("baseline", "avx2", "avx512", "avx512bf16")
SECONDS = 900  # time limit of one run of pytest, because a mutation may loop for ever
STARTED = re.compile(r"^(tests/.+?::.+?)(?: (FAILED|ERROR|PASSED|SKIPPED|XFAIL)\b.*| *)$", re.M)
PARTS = ("csrc", "kernels", "pypeft_fast", "tests", "pyproject.toml", "setup.py")


class NotTried(Exception):
    """A mutation does not compile, or its tests cannot be run."""


def copied(folder):
    """Copies the parts of the tree that tests read into `folder`, and builds a library there; returns `folder`."""
    for part in PARTS:
        if (ROOT / part).is_file():
            shutil.copy(ROOT / part, folder)
        else:
            ignored = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree(ROOT / part, folder / part, symlinks=True, ignore=ignored)
    library.put_into(folder)
    return folder


def first_failure(tree, arguments):
    """The name of the first test that fails in this tree, or None."""
    environment = {
        **os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1", "COLUMNS": "400", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-x", "-v", "--tb=line", "-p", "no:cacheprovider", *arguments]
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as late:
        return f"{_last(late.stdout.decode())} (not done in {SECONDS} s)"
    if done.returncode == 0:
        return None
    if "the emulator does not compile" in done.stdout:
        raise NotTried(f"it does not compile:\n{done.stdout[-3000:]}")
    failed = [name for name, result in STARTED.findall(done.stdout) if result in ("FAILED", "ERROR")]
    if done.returncode == 1 and failed:
        return failed[0]
    if done.returncode < 0:
        return f"{_last(done.stdout)} (signal {-done.returncode})"
    raise NotTried(f"pytest {shlex.join(arguments)} says\n{done.stdout[-3000:]}{done.stderr[-1000:]}")


def _last(output):
    started = STARTED.findall(output)
    return started[-1][0] if started else "before the first test"


def killer(mutation, tree):
    """The first test that fails with the mutation, or None. NotTried if it does not compile or a run has no tests."""
    with mutation.applied(tree):
        try:
            library.put_into(tree)
        except subprocess.CalledProcessError as failed:
            raise NotTried(f"it does not compile:\n{failed.stderr[-3000:]}") from None
        found = (first_failure(tree, shlex.split(test)) for test in mutation.tests)
        return next((name for name in found if name is not None), None)


def verdict(mutation, killed):
    """(the text for the table, whether the result is the expected one)."""
    if killed is not None:
        return f"killed by {killed}", not mutation.equivalent
    return ("equivalent" if mutation.equivalent else "SURVIVED"), bool(mutation.equivalent)


def chosen(names):
    known = {mutation.name: mutation for mutation in MUTATIONS}
    unknown = set(names) - set(known)
    if unknown:
        raise SystemExit(f"--only {' '.join(sorted(unknown))}: no such mutation; --list prints their names")
    return [known[name] for name in names] if names else MUTATIONS


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.run", description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the mutations and stop")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these mutations alone")
    options = parser.parse_args(arguments)
    mutations = chosen(options.only)
    if options.list:
        print(*(f"{m.name:36} {m.file}: {m.old} -> {m.new}" for m in mutations), sep="\n")
        return 0
    isa = _native.cpu_isa()
    killers, wrong, survivors = {}, [], []
    with tempfile.TemporaryDirectory(prefix="pypeft-mutants-") as folder:
        tree = copied(Path(folder).resolve())
        for mutation in mutations:
            began = time.monotonic()
            if mutation.needs and ISAS.index(mutation.needs) > ISAS.index(isa):
                print(f"{mutation.name:36} not tried: this CPU has no {mutation.needs}", flush=True)
                continue
            try:
                killed = killer(mutation, tree)
                said, as_expected = verdict(mutation, killed)
            except (NotTried, ValueError) as error:
                killed, said, as_expected = None, f"NOT TRIED: {error}", False
            print(f"{mutation.name:36} {said}, {time.monotonic() - began:.0f} s", flush=True)
            if killed is not None:
                killers.setdefault(re.sub(r" \(.*\)$", "", killed), mutation.name)
            elif mutation.equivalent:
                survivors.append(f"{mutation.name}: {mutation.equivalent}")
            if not as_expected:
                wrong.append(mutation.name)
        library.put_into(tree)
        failing = first_failure(tree, [name for name in killers if name.startswith("tests/")]) if killers else None
    print(f"\n{len(mutations)} mutations, {len(killers)} tests that killed one", *survivors, sep="\n")
    if failing is not None:
        print(f"{failing} fails without {killers.get(failing, 'a mutation')} too: it proves nothing")
    if wrong:
        print(f"not as they should be: {' '.join(wrong)}")
    return 1 if wrong or failing is not None else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
