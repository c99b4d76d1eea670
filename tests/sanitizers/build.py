"""Builds csrc/ with a sanitizer, in a folder of its own.

The folder build/<name>/ has a copy of the package and of the tests, and the library with the sanitizer. Processes that
run in the folder, and their child processes, use this library. The sanitizer must first report a planted fault, which
shows that the sanitizer works.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import setuptools

ROOT = Path(__file__).resolve().parents[2]
CSRC, BUILD = ROOT / "csrc", ROOT / "build"
COMPILER = os.environ.get("CXX", "g++")
# These flags come after those of setup.py and override them: line numbers in reports, and fast compilation.
DEBUG = ["-O1", "-g1", "-fno-omit-frame-pointer", "-D_GLIBCXX_ASSERTIONS"]


@dataclass(frozen=True)
class Plant:
    """A planted fault: `new` replaces `old` in csrc/<file>, and csrc/<source> is compiled with the changed file."""

    name: str
    file: str
    source: str
    old: str
    new: str

    def write(self, folder):
        """Writes the changed file under the same name into `folder`, which is searched for headers first."""
        text = (CSRC / self.file).read_text()
        if text.count(self.old) != 1:
            raise SystemExit(f"csrc/{self.file}: the planted fault {self.name!r} expects {self.old!r} in it once")
        faulty = folder / self.file
        faulty.parent.mkdir(parents=True, exist_ok=True)
        faulty.write_text(text.replace(self.old, self.new))


def extension():
    """The extension as setup.py describes it: sources, folders, flags."""
    os.environ["PYPEFT_FAST_BUILD"] = "cpu"
    here = os.getcwd()
    os.chdir(ROOT)
    (described,) = setuptools.distutils.core.run_setup("setup.py", stop_after="init").ext_modules
    os.chdir(here)
    return described


def compile_command(described, source, out, first=()):
    """The command with which setup.py compiles a file; the folders `first` are searched before all others."""
    folders = [*first, *described.include_dirs, sysconfig.get_path("include")]
    includes = [f"-I{folder}" for folder in folders]
    macros = ["-DPy_LIMITED_API=0x030a0000", "-DTORCH_EXTENSION_NAME=_C"]
    return [*described.extra_compile_args, "-std=c++20", "-fPIC", *macros, *includes, "-c", str(source), "-o", str(out)]


def run(command):
    print("+", command[0], *[part for part in command[1:] if part.endswith((".cpp", ".so"))], flush=True)
    subprocess.run(command, cwd=ROOT, check=True)


def objects(name, flags, extra=()):
    """{source: object file}. A source is compiled if the source or a header is newer than its object file."""
    described, folder = extension(), BUILD / name / "objects"
    folder.mkdir(parents=True, exist_ok=True)
    headers = max(path.stat().st_mtime for path in [*CSRC.rglob("*.h"), Path(__file__), ROOT / "setup.py"])
    made = {}
    for source in [*described.sources, *extra]:
        path = ROOT / source
        out = made[path] = folder / (source.replace("/", "-") + ".o")
        if not out.exists() or out.stat().st_mtime <= max(headers, path.stat().st_mtime):
            run([COMPILER, *compile_command(described, path, out), *flags])
    return made


def tree(name, flags, made, plant=None):
    """Makes the folder of a package that is linked from these objects, with the planted fault if one is given."""
    described, folder = extension(), BUILD / (f"{name}-{plant.name}" if plant else name)
    for part in ("kernels", "pypeft_fast", "tests"):
        shutil.rmtree(folder / part, ignore_errors=True)
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / part, folder / part, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    if plant:
        overlay = folder / "csrc"
        plant.write(overlay)
        source = overlay / plant.source if (overlay / plant.source).exists() else CSRC / plant.source
        out = folder / "planted.o"
        run([COMPILER, *compile_command(described, source, out, [overlay]), *flags, "-w"])
        made = {**made, CSRC / plant.source: out}
    libraries = [
        *(f"-L{where}" for where in described.library_dirs),
        *(f"-l{library}" for library in described.libraries),
    ]
    library = folder / "pypeft_fast" / "_C.abi3.so"
    run([COMPILER, "-shared", *flags, *map(str, made.values()), *libraries, "-o", str(library)])
    return folder


def runtime(*names):
    """The paths of libraries of the compiler, for LD_PRELOAD, because Python is not linked with a sanitizer."""
    paths = []
    for name in names:
        found = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        path = Path(found.stdout.strip())
        if not path.is_absolute():
            raise SystemExit(f"{COMPILER} has no {name}: install the sanitizers of that compiler")
        paths.append(str(path.resolve()))
    return " ".join(paths)


@dataclass(frozen=True)
class Result:
    code: int
    output: str
    reports: str


def execute(folder, arguments, environment, *, capture=True):
    """Runs Python in the folder of a tree. The sanitizers write their reports to files, if they support that."""
    reports = folder / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir()
    log = f":log_path={reports}/report"
    options = {k: v + log if k.endswith("SAN_OPTIONS") else v for k, v in environment.items()}
    base = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(folder)}
    launch = ["setarch", "-R"] if "TSAN_OPTIONS" in environment else []  # its shadow memory needs fixed addresses
    done = subprocess.run(
        [*launch, sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, **base, **options},
        stdout=subprocess.PIPE if capture else None,
        stderr=subprocess.STDOUT if capture else None,
        text=True,
        check=False,
    )
    texts = [path.read_text() for path in sorted(reports.iterdir())]
    return Result(done.returncode, done.stdout or "", "\n".join(texts))


def expect_silence(result, what):
    if result.code or result.reports:
        raise SystemExit(f"{what}: exit status {result.code}\n{result.output}\n{result.reports}")


def expect_report(result, plant, pattern):
    said = result.output + result.reports
    if not result.code or not re.search(pattern, said, re.DOTALL):
        raise SystemExit(f"the planted fault {plant.name!r} was not found: /{pattern}/ is not in\n{said}")
    print(f"Found the planted fault {plant.name!r}", flush=True)


def instruction_sets(folder, environment):
    """The instruction sets of this CPU, best first; checks that Python uses the library of the tree for each."""
    probe = "import pypeft_fast._native as n; print(n.LIBRARY_PATH, n.cpu_isa())"
    found = []
    for isa in ("avx512bf16", "avx512", "avx2", "baseline"):
        done = execute(folder, ["-c", probe], environment(isa))
        if done.code and "is not an instruction set of this CPU" in done.output:
            print(f"This CPU has no {isa}: not tested", flush=True)
            continue
        expect_silence(done, f"the import on {isa}")
        if done.output.split() != [str(folder / "pypeft_fast" / "_C.abi3.so"), isa]:
            raise SystemExit(f"expected the library of {folder} on {isa}, not {done.output}")
        found.append(isa)
    return found
