"""PEFT's own tests on our get_peft_model and classes, compared test by test with an unmodified run.

    git clone --depth 1 https://github.com/huggingface/peft
    .venv/bin/pip install --target peft-deps --no-deps diffusers datasets parameterized dill multiprocess xxhash \\
        pyarrow pandas scipy aiohttp importlib_metadata zipp pytz tzdata python-dateutil six
    PYTHONPATH=peft-deps .venv/bin/python -m tests.conformance.run --output out/conformance peft -n 2

The arguments after the checkout are arguments of pytest in the checkout. Without a path pytest runs
tests/test_custom_models.py, which has 18,000 tests; `-k "loraconfig or ia3"` selects a third of them. With --reuse the
results of the unmodified run are read from --output, if it had the same arguments. Tests that need a model hub fail in
both runs.

The exit status is 1 if a test ends differently than in the unmodified run, if no test ran, or if no call was fused.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Tests of features that our classes refuse on purpose; they may end differently.
STRICTER = {"test_save_pretrained_pickle": "safe_serialization=False would write a pickle"}


def outcomes(report: Path) -> dict[str, str]:
    """{test: passed, skipped, failure or error} of a JUnit report."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found[f"{case.get('classname')}::{case.get('name')}"] = kinds[0] if kinds else "passed"
    return found


def run(checkout: Path, arguments, folder: Path, fused: bool) -> dict[str, str]:
    name = "fused" if fused else "unmodified"
    report, log, calls = folder / f"{name}.xml", folder / f"{name}.log", folder / "calls"
    report.unlink(missing_ok=True)
    # -c replaces the settings of the checkout, which measure coverage. The tests use the installed PEFT.
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(folder / "pytest.ini"), f"--rootdir={checkout}"]
    command += ["-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
    path = os.pathsep.join(filter(None, [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": path}
    if fused:
        command += ["-p", "fused_peft_layers"]
        shutil.rmtree(calls, ignore_errors=True)
        calls.mkdir()
        environment["PYPEFT_FAST_CALLS"] = str(calls)
    with log.open("w") as output:
        subprocess.run(command, cwd=checkout, env=environment, stdout=output, stderr=output, check=False)
    if not report.exists():
        raise SystemExit(f"pytest did not finish:\n{log.read_text()[-2000:]}")
    return outcomes(report)


def fused_calls(folder: Path) -> Counter:
    """The sum of the counts that the processes of the fused run have written to `folder`."""
    return sum((Counter(json.loads(path.read_text())) for path in (folder / "calls").iterdir()), Counter())


def reusable(folder: Path, arguments) -> bool:
    report, with_arguments = folder / "unmodified.xml", folder / "unmodified.json"
    return report.exists() and with_arguments.exists() and json.loads(with_arguments.read_text()) == arguments


def compare(checkout: Path, arguments, folder: Path, reuse: bool) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    if reuse and reusable(folder, arguments):
        before = outcomes(folder / "unmodified.xml")
    else:
        before = run(checkout, arguments, folder, fused=False)
        (folder / "unmodified.json").write_text(json.dumps(arguments))
    after = run(checkout, arguments, folder, fused=True)
    return summarise(before, after, fused_calls(folder))


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.run", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="folder for the logs and reports (default: kept nowhere)")
    parser.add_argument("--reuse", action="store_true", help="take the unmodified run from --output if it is there")
    parser.add_argument("checkout", type=Path, help="of PEFT's repository")
    parser.add_argument("pytest", nargs=argparse.REMAINDER, help="pytest's own arguments")
    options = parser.parse_args(arguments)
    checkout, rest = options.checkout.resolve(), options.pytest
    if not (checkout / "tests").is_dir():
        parser.error(f"checkout {checkout} has no folder tests")
    if not any((checkout / argument.partition("::")[0]).exists() for argument in rest):
        rest = ["tests/test_custom_models.py", *rest]
    if options.output is not None:
        return compare(checkout, rest, options.output.resolve(), options.reuse)
    with tempfile.TemporaryDirectory() as folder:
        return compare(checkout, rest, Path(folder), reuse=False)


def summarise(before, after, calls) -> int:
    differing = [name for name in before | after if before.get(name) != after.get(name)]
    refused = [name for name in differing if name.partition("::")[2].partition("[")[0] in STRICTER]
    differences = [name for name in differing if name not in refused]
    for name, result in (("unmodified", before), ("fused", after)):
        counts = {kind: list(result.values()).count(kind) for kind in sorted(set(result.values()))}
        print(f"{name:11}", ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    for reason, count in sorted(calls.items(), key=lambda item: -item[1]):
        print(f"{count:7} calls {reason}")
    for name in differences:
        print(f"DIFFERENT  {name}: {before.get(name, 'absent')} unmodified, {after.get(name, 'absent')} fused")
    for test, reason in STRICTER.items():
        print(f"{sum(f'::{test}' in name for name in refused):7} of {test} end otherwise on purpose: {reason}")
    print(f"{len(differences)} of {len(before)} tests end otherwise")
    return 1 if differences or not calls.get("fused") or not before else 0


if __name__ == "__main__":
    sys.exit(main())
