"""The versions that `make test-versions` tests, and the tests that it runs with each version."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The packages that every environment needs to build csrc/ and to run the tests. pip installs the newest versions that
# PyTorch accepts; PyTorch 2.11 needs setuptools < 82.
TOOLS = ("setuptools>=77", "wheel", "ninja", "pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6")
# Tests of the code that depends on versions: registration, tracing, the interpreter of Triton, the C++ library, the
# layers of PEFT, and the rehearsal of bench.gpu_hour.
TESTS = (
    "tests/test_op.py", "tests/frozen", "tests/autograd", "tests/nn", "tests/ops/test_every_op.py",
    "tests/ops/test_triton_precision.py", "tests/model/test_fuse.py", "tests/model/test_ia3.py",
    "tests/model/test_switching.py", "tests/bench/test_gpu_hour.py",
)  # fmt: skip
TRITONS = ("3.6.0", "3.7.1", "3.9.0")  # the static report of TARGET must pass with each
TARGET = "sm_90"
# The interpreter of Triton 3.6 converts arrays of one element to int, which NumPy 2.4 does not allow.
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
    without: str = ""  # an expression for pytest's -k: tests of features that these versions lack

    @property
    def requirements(self):
        return (*self.packages, *TOOLS)


ENVIRONMENTS = (
    Environment("oldest", (oldest("torch"), oldest("peft"), oldest("transformers"), NUMPY)),
    Environment("torch-2.11", ("torch==2.11.0", "peft", "transformers==5.17.0", NUMPY)),
    Environment("newest", ("torch==2.13.0", "peft", "transformers", "triton==3.9.0")),
)
