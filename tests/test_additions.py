"""The lists of files in CONTRIBUTING.md, tested with examples: an op and a format, added to a copy of the tree.

Each example touches exactly the files that its section names, and passes the tests of the sample registry.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OP = {
    "pypeft_fast/ops/toy.py": '''"""y = 2 x: x [M, K] -> y [M, K] in x's dtype."""

from .._op import Op
from . import _check

toy = Op("toy(Tensor x) -> Tensor")


@toy.check
def _(x):
    _check.matrix("toy", x=x)
    _check.floating("toy", "x", x)


@toy.fake
def _(x):
    return x.new_empty(x.shape)


@toy.reference
def reference(x):
    return (2 * x).contiguous()


toy.kernel("blas")(lambda x: x.add(x).contiguous())
''',
    "pypeft_fast/testing/ops/toy.py": """from ...ops.toy import toy
from ..entry import Entry, Variant
from ..spoil import zeros

ENTRY = Entry(op=toy, arguments=lambda o: (o.x,), eager=lambda x: x * 2, variants={"": Variant({}, {"zeros": zeros})})
""",
    "pypeft_fast/testing/registry.py": lambda text: text.replace("    swiglu,\n", "    swiglu,\n    toy,\n").replace(
        "_FILES = (", "_FILES = (\n    toy,"
    ),
    "tests/ops/test_toy.py": """import torch

from pypeft_fast.ops.toy import toy


def test_by_hand():
    assert toy(torch.tensor([[3.0]])).item() == 6
""",
}
# A format that stores half of every weight.
FORMAT = {
    "pypeft_fast/frozen/formats.py": lambda text: text.replace(
        "FORMATS = {",
        """FORMATS = {
    "halves": Format(
        {1: ("half",)},
        lambda tensors, shape, dtype: None,
        lambda tensors, shape, dtype: (2 * tensors[0].double()).to(dtype),
        quantize=lambda weight: (weight / 2,),
    ),""",
    ),
    "pypeft_fast/testing/cases.py": lambda text: text.replace('FORMATS = ("nf4"', 'FORMATS = ("halves", "nf4"'),
}


def _added(tmp_path, changes):
    """A copy of the tree. `changes` is {file: its new text, or a function of its old text}."""
    for folder in ("pypeft_fast", "kernels", "tests", "bench"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for path, change in changes.items():
        file = tmp_path / path
        assert file.is_file() == callable(change), path
        old = file.read_text() if callable(change) else ""
        new = change(old) if callable(change) else change
        assert new != old, path
        file.write_text(new)
    return tmp_path


def _passes(tree, *arguments):
    """Runs pytest in the tree; returns the number of passed tests."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return int(re.search(r"(\d+) passed", done.stdout)[1])


def _listed(section):
    """The files that a section of CONTRIBUTING.md lists, where X stands for the new name."""
    text = (ROOT / "CONTRIBUTING.md").read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"`([\w./]+)`", re.search(r"\*\*Files to touch\*\*(.*?)\n\n", text + "\n\n", re.DOTALL)[1])


@pytest.mark.parametrize(
    "section,changes,name", [("Add an op", OP, "toy"), ("Add a format", FORMAT, "halves")], ids=["op", "format"]
)
def test_the_list_is_what_an_addition_touches(section, changes, name):
    assert sorted(path.replace("X.", f"{name}.") for path in _listed(section)) == sorted(changes)


def test_an_op_goes_through_the_registry(tmp_path):
    tree = _added(tmp_path, OP)
    assert _passes(tree, "tests/ops/test_every_op.py", "tests/ops/test_toy.py", "-k", "toy") > 60


def test_a_format_goes_through_the_registry(tmp_path):
    """On every op and kernel: the C++ kernels do not support the format, and the others get the dequantised weight."""
    tree = _added(tmp_path, FORMAT)
    assert _passes(tree, "tests/ops/test_every_op.py", "-k", "every_format and halves and lora_linear") >= 6
    assert _passes(tree, "tests/ops/test_every_op.py", "-k", "every_format and halves and ia3_dx_dl") >= 6
