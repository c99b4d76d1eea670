"""csrc/cpu compiles without a warning by other compilers and for another CPU, if they are installed."""

import shutil
import subprocess

import pytest

from tests.sanitizers.build import CSRC, compile_command, extension

pytestmark = pytest.mark.slow
COMPILERS = {"aarch64-linux-gnu-g++": "install g++-aarch64-linux-gnu", "clang++": "install clang"}
SOURCES = sorted(str(path.relative_to(CSRC)) for path in (CSRC / "cpu").rglob("*.cpp"))


def compiled(compiler, source, out):
    """The output of the compiler, empty if there was no warning."""
    # Warnings in headers of PyTorch are off. clang does not know all warnings of g++.
    command = [compiler, *compile_command(extension(), source, out), "-Werror", "-Wno-unknown-warning-option"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("source", SOURCES)
def test_compiles_without_a_warning(compiler, source, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here: {COMPILERS[compiler]}")
    out = tmp_path / "out.o"
    assert compiled(compiler, CSRC / source, out) == ""
    assert out.stat().st_size > 1000


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_warning_is_noticed(compiler, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here: {COMPILERS[compiler]}")
    faulty = tmp_path / "faulty.cpp"
    faulty.write_text("static int unused() { return 1; }\n")
    assert "unused" in compiled(compiler, faulty, tmp_path / "out.o")
