"""PEFT's own tests with our layers in the place of its own, compared test by test with an unmodified run.

    git clone --depth 1 https://github.com/huggingface/peft && pip install diffusers datasets parameterized
    python -m tests.conformance.run peft -k "loraconfig or ia3" tests/test_custom_models.py

The first argument is the checkout; the rest goes to pytest, in the checkout. Exit status 1 if a test ends otherwise
than in the unmodified run, or if no fused call happened. Tests that need a model hub fail in both runs.
"""

import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def outcomes(report: Path) -> dict[str, str]:
    """{test: passed, skipped, failure or error} of a JUnit report."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found[f"{case.get('classname')}::{case.get('name')}"] = kinds[0] if kinds else "passed"
    return found


def run(checkout: Path, arguments, folder: Path, fused: bool) -> dict[str, str]:
    report = folder / f"{'fused' if fused else 'unmodified'}.xml"
    # -c: not the checkout's own settings, which measure coverage. PEFT itself is the installed one.
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(folder / "pytest.ini"), f"--rootdir={checkout}"]
    command += ["-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
    if fused:
        command += ["-p", "fused_peft_layers"]
    path = os.pathsep.join(filter(None, [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    calls = str(folder / "calls.json")
    environment = os.environ | {"PYTHONPATH": path, "PYPEFT_FAST_CALLS": calls}
    with (folder / f"{report.stem}.log").open("w") as log:
        subprocess.run(command, cwd=checkout, env=environment, stdout=log, stderr=log, check=False)
    if not report.exists():
        raise SystemExit(f"pytest did not finish:\n{(folder / f'{report.stem}.log').read_text()[-2000:]}")
    return outcomes(report)


def main(arguments=None) -> int:
    checkout, *rest = sys.argv[1:] if arguments is None else arguments
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        before = run(Path(checkout).resolve(), rest, folder, fused=False)
        after = run(Path(checkout).resolve(), rest, folder, fused=True)
        calls = json.loads((folder / "calls.json").read_text())
    return summarise(before, after, calls)


def summarise(before, after, calls) -> int:
    differences = [name for name in before | after if before.get(name) != after.get(name)]
    for name, result in (("unmodified", before), ("fused", after)):
        counts = {kind: list(result.values()).count(kind) for kind in sorted(set(result.values()))}
        print(f"{name:11}", ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    for reason, count in sorted(calls.items(), key=lambda item: -item[1]):
        print(f"{count:7} calls {reason}")
    for name in differences:
        print(f"DIFFERENT  {name}: {before.get(name, 'absent')} unmodified, {after.get(name, 'absent')} fused")
    print(f"{len(differences)} of {len(before)} tests end otherwise")
    return 1 if differences or not calls.get("fused") or not before else 0


if __name__ == "__main__":
    sys.exit(main())
