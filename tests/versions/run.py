"""python -m tests.versions.run: the oldest and newest versions that pyproject.toml accepts, each in its environment.

An environment has a copy of the tree, in which csrc/cpu is built with the PyTorch of the environment, and in which the
tests `environments.TESTS` run. Then each version of Triton makes the static report of sm_90. PyTorch from PyPI is for
CUDA: 5 GB for each environment, and usable without a GPU. --index gives an index with smaller builds.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from .environments import ENVIRONMENTS, ROOT, TARGET, TESTS, TRITONS

PARTS = ("bench", "csrc", "docs", "kernels", "pypeft_fast", "src", "tests", "LICENSE", "README.md", "pyproject.toml",
         "setup.py")  # fmt: skip
QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def logged(log, command, cwd=ROOT, **given):
    """Runs a command with its output in the file `log`; returns whether it succeeded."""
    with log.open("w") as file:
        done = subprocess.run(
            list(map(str, command)), cwd=cwd, env=os.environ | given, stdout=file, stderr=subprocess.STDOUT, check=False
        )
    return done.returncode == 0


def last_line(log):
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "nothing was printed"


def installed(environment, folder, index):
    """The python of the environment, which is created once for these requirements; None if they cannot be installed."""
    venv, stamp, wanted = folder / "venv", folder / "installed.txt", "\n".join(environment.requirements)
    if not stamp.is_file() or stamp.read_text() != wanted:
        if not logged(folder / "venv.log", [sys.executable, "-m", "venv", "--clear", venv]):
            return None
        more = ["--extra-index-url", index] if index else []
        pip = [venv / "bin/python", "-m", "pip", "install", "--disable-pip-version-check", *more]
        if not logged(folder / "install.log", [*pip, *environment.requirements]):
            return None
        stamp.write_text(wanted)
    return venv / "bin/python"


def copied(tree):
    """Copies the parts of the tree that are built and tested to `tree`, without compiled libraries."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    for part in PARTS:
        if (ROOT / part).is_file():
            shutil.copy(ROOT / part, tree)
        else:
            shutil.copytree(ROOT / part, tree / part, symlinks=True, ignore=ignored)


def tried(environment, folder, index):
    """[(step, whether it succeeded, message)] of one environment."""
    folder.mkdir(parents=True, exist_ok=True)
    python, tree = installed(environment, folder, index), folder / "tree"
    if python is None:
        return [("install", False, last_line(folder / "install.log"))]
    copied(tree)
    build = [python, "setup.py", "build_ext", "--inplace"]
    if not logged(folder / "build.log", build, tree, PYPEFT_FAST_BUILD="cpu"):
        return [("build", False, f"see {folder / 'build.log'}")]
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", "-m", "not slow", *TESTS]
    if environment.without:
        tests += ["-k", environment.without]
    well = logged(folder / "tests.log", tests, tree, PYTHONPATH=str(tree), **QUIET)
    return [("build", True, ""), ("tests", well, last_line(folder / "tests.log"))]


def reported(version, folder):
    """Makes the static report of TARGET with one version of Triton; returns (step, whether it succeeded, message)."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--target", target]
    if not target.is_dir() and not logged(folder / "install.log", [*pip, f"triton=={version}"]):
        return "install", False, last_line(folder / "install.log")
    report = ["-W", "ignore", "-m", "bench.gpu_static", "--targets", TARGET, "--providers", "triton"]
    paths = os.pathsep.join([str(target), str(ROOT)])
    well = logged(folder / "static.log", [sys.executable, *report, "--output", folder], PYTHONPATH=paths)
    return "static report", well, last_line(folder / "static.log")


def main(arguments=None):
    names = [environment.name for environment in ENVIRONMENTS] + [f"triton-{version}" for version in TRITONS]
    parser = argparse.ArgumentParser(prog="python -m tests.versions.run", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=names, choices=names, help="some of them (default: all)")
    parser.add_argument("--index", help="of PyTorch's wheels, as https://download.pytorch.org/whl/cpu")
    parser.add_argument("--folder", type=Path, default=ROOT / "build/versions", help="(default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="print what each has, and do nothing")
    options = parser.parse_args(arguments)
    if options.list:
        for environment in ENVIRONMENTS:
            print(environment.name, *environment.packages)
        print(*(f"triton-{version}" for version in TRITONS), TARGET)
        return 0
    all_well = True
    for name in options.only:
        environment = next((e for e in ENVIRONMENTS if e.name == name), None)
        if environment is None:
            rows = [reported(name.partition("-")[2], options.folder.resolve() / name)]
        else:
            rows = tried(environment, options.folder.resolve() / name, options.index)
        for what, well, words in rows:
            all_well = all_well and well
            print(f"{name}: {what}: {'well' if well else 'FAILED'}: {words}", flush=True)
    return 0 if all_well else 1


if __name__ == "__main__":
    sys.exit(main())
