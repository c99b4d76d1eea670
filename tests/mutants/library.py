"""Compiles csrc/cpu for a copy of the tree.

Each source has an object file, which is cached under a hash of the source, its headers and the flags. A mutation
therefore compiles only the sources that include its line.
"""

import hashlib
import re
import shutil
import subprocess

import torch

from tests.sanitizers import build

KEPT = build.BUILD / "mutants"
QUICK = ["-O0", "-w"]  # after the flags of setup.py; mutations need no optimisation
INCLUDED = re.compile(r'^#(?:include|define ISA_BODY) "(.+)"', re.M)


def _texts(csrc, name, seen):
    """Adds to `seen` the texts of a file in csrc and of the files in csrc that it includes."""
    if name in seen or not (csrc / name).is_file():
        return
    seen[name] = (csrc / name).read_text()
    for included in INCLUDED.findall(seen[name]):
        _texts(csrc, included, seen)


def _digest(*parts):
    return hashlib.sha256(repr((torch.__version__, build.COMPILER, QUICK, *parts)).encode()).hexdigest()[:16]


def put_into(tree):
    """Builds the library of the tree, from cached object files where possible, and copies the library into the tree.

    subprocess.CalledProcessError, with the messages of the compiler in `stderr`, if a source does not compile.
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
