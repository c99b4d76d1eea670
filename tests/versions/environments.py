"""The versions that `make test-versions` tries, and the tests that it runs under each."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What every environment needs to build csrc/ and to run the tests. pip takes the newest that fit PyTorch: 2.11 asks for
# setuptools < 82.
TOOLS = ("setuptools>=77", "wheel", "ninja", "pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6")
# What stands on the versions: registration, tracing, Triton's interpreter, the C++ library, PEFT's layers,
# and the rehearsal of a GPU's hour.
TESTS = (
    "tests/test_op.py", "tests/frozen", "tests/autograd", "tests/nn", "tests/ops/test_every_op.py",
    "tests/ops/test_triton_precision.py", "tests/model/test_fuse.py", "tests/model/test_ia3.py",
    "tests/model/test_switching.py", "tests/bench/test_gpu_hour.py",
)  # fmt: skip
TRITONS = ("3.6.0", "3.7.1", "3.9.0")  # whose compilers the static report of TARGET is held to
TARGET = "sm_90"
# The interpreter of Triton 3.6 makes ints of arrays of one element, which NumPy 2.4 no longer does.
NUMPY = "numpy<2.4"


def oldest(name, text=None):
    """The requirement of the oldest version of a package that pyproject.toml accepts, as "peft==0.18"."""
    text = (ROOT / "pyproject.toml").read_text() if text is None else text
    found = re.search(rf'^\s*"{name}>=([\d.]+)"', text, re.M)
    if found is None:
        raise ValueError(f"name={name!r}: pyproject.toml names no oldest version of it; accepted are its dependencies")
    return f"{name}=={found[1]}"


@dataclass(frozen=True)
class Environment:
    name: str
    packages: tuple[str, ...]
    without: str = ""  # tests of what these versions lack, as pytest's -k names them

    @property
    def requirements(self):
        return (*self.packages, *TOOLS)


ENVIRONMENTS = (
    Environment("oldest", (oldest("torch"), oldest("peft"), oldest("transformers"), NUMPY)),
    Environment("torch-2.11", ("torch==2.11.0", "peft", "transformers==5.17.0", NUMPY)),
    Environment("newest", ("torch==2.13.0", "peft", "transformers", "triton==3.9.0")),
)
