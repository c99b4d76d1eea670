"""csrc/cpu compiled for a copy of the tree: an object file for each source, kept by the hash of all that goes into it,
so that a mutation compiles what includes its line and nothing else."""

import hashlib
import re
import shutil
import subprocess

import torch

from tests.sanitizers import build

KEPT = build.BUILD / "mutants"
QUICK = ["-O0", "-w"]  # after setup.py's own flags: what a mutation makes wrong is wrong without optimisation too
INCLUDED = re.compile(r'^#(?:include|define ISA_BODY) "(.+)"', re.M)


def _texts(csrc, name, seen):
    """The texts of a file in csrc and of what it includes from there, once each."""
    if name in seen or not (csrc / name).is_file():
        return
    seen[name] = (csrc / name).read_text()
    for included in INCLUDED.findall(seen[name]):
        _texts(csrc, included, seen)


def _digest(*parts):
    return hashlib.sha256(repr((torch.__version__, build.COMPILER, QUICK, *parts)).encode()).hexdigest()[:16]


def put_into(tree):
    """Compiles what this tree needs and is not kept, and gives the tree its library.

    subprocess.CalledProcessError, with the compiler's words in `stderr`, if it does not compile.
    """
    KEPT.mkdir(parents=True, exist_ok=True)
    described, csrc, objects = build.extension(), tree / "csrc", []
    for source in described.sources:
        texts = {}
        _texts(csrc, source.removeprefix("csrc/"), texts)
        out = KEPT / f"{source.replace('/', '-')}-{_digest(described.extra_compile_args, texts)}.o"
        if not out.exists():
            partial = out.with_suffix(".partial")
            _run([*build.compile_command(described, tree / source, partial, [csrc]), *QUICK])
            partial.replace(out)
        objects.append(str(out))
    library = KEPT / f"{_digest(objects)}.so"
    if not library.exists():
        folders = [f"-L{folder}" for folder in described.library_dirs]
        names = [f"-l{name}" for name in described.libraries]
        _run(["-shared", *objects, *folders, *names, "-o", str(library)])
    shutil.copy(library, tree / "pypeft_fast" / "_C.abi3.so")


def _run(arguments):
    subprocess.run([build.COMPILER, *arguments], check=True, capture_output=True, text=True)
