"""The lists of files in CONTRIBUTING.md, tested with examples: an op, a kernel of it, and a format, added to a copy of
the tree.

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
# A Triton kernel of this op.
KERNEL = {
    "kernels/toy.py": '''"""y = 2 x in one launch."""

import triton
import triton.language as tl


@triton.jit
def _toy(x_ptr, y_ptr, M, K, x_m, x_k, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at // K * x_m + at % K * x_k, mask=at < M * K)
    y = (2 * x.to(tl.float32)).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + at, y, mask=at < M * K)


def toy(x):
    """x [M, K], any strides -> y [M, K]."""
    y = x.new_empty(x.shape)
    if y.numel() > 0:
        _toy[(triton.cdiv(y.numel(), 64),)](x, y, *x.shape, *x.stride(), BLOCK=64)
    return y
''',
    "pypeft_fast/ops/toy.py": lambda text: (
        text.replace("import _check", "import _check, _triton")
        + """

@toy.kernel("triton", ("cuda",), _triton.why_no_triton, _triton.rejects, interpreted=("cpu",))
def _(x):
    from ..kernels.toy import toy

    return toy(x)
"""
    ),
}
# A format that stores every row in float16, over its largest absolute value; no compiled kernel decodes it.
FORMAT = {
    "pypeft_fast/frozen/formats.py": lambda text: (
        text.replace(
            "FORMATS = {",
            """FORMATS = {
    "halves": Format(
        {2: ("weight", "scale")},
        _check_halves,
        lambda tensors, shape, dtype: (tensors[0].float() * tensors[1]).to(dtype),
        quantize=lambda weight: ((weight / weight.abs().amax(1, True)).half(), weight.float().abs().amax(1, True)),
    ),""",
        )
        .replace(
            "FORMATS = {",
            """def _check_halves(tensors, shape, dtype):
    weight, scale = tensors
    computes_in(dtype)
    if tuple(weight.shape) != shape or weight.dtype != torch.float16:
        raise ValueError(f"Frozen: weight is {tuple(weight.shape)} {weight.dtype}, expected {shape} torch.float16")
    has("scale", scale, torch.float32, shape[0], "one a row")


FORMATS = {""",
        )
        .replace("import of_accepted_dtype", "import computes_in, has, of_accepted_dtype")
        .replace("from . import", "import torch\n\nfrom . import")
    ),
    "pypeft_fast/testing/cases.py": lambda text: text.replace('FORMATS = ("nf4"', 'FORMATS = ("halves", "nf4"'),
}


def _added(tmp_path, *additions):
    """A copy of the tree with additions, each {file: its new text, or a function of its old text}."""
    for folder in ("pypeft_fast", "kernels", "tests", "bench"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for path, change in (item for changes in additions for item in changes.items()):
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
    "section,changes,name",
    [("Add an op", OP, "toy"), ("Add a kernel", KERNEL, "toy"), ("Add a format", FORMAT, "halves")],
    ids=["op", "kernel", "format"],
)
def test_the_list_is_what_an_addition_touches(section, changes, name):
    assert sorted(path.replace("X.", f"{name}.") for path in _listed(section)) == sorted(changes)


def test_an_op_goes_through_the_registry(tmp_path):
    tree = _added(tmp_path, OP)
    assert _passes(tree, "tests/ops/test_every_op.py", "tests/ops/test_toy.py", "-k", "toy") > 60


def test_the_files_of_c_and_cuda_are_those_of_the_example():
    """CONTRIBUTING.md says that lora_shrink has a kernel of each kind."""
    text = (ROOT / "CONTRIBUTING.md").read_text().split("## Add a kernel\n")[1].split("\n1. ")[0]
    files = {path.replace("X", "lora_shrink") for path in re.findall(r"`([\w./]*/X\w*\.\w+)`", text)}
    assert len(files) == 4 and [path for path in files if not (ROOT / path).is_file()] == []
    assert "lora_shrink" in (ROOT / "tests/emulator/test_every_kernel.py").read_text()


def test_a_kernel_is_found(tmp_path):
    tree = _added(tmp_path, OP, KERNEL)
    assert _passes(tree, "tests/ops/test_every_op.py", "-k", "toy and triton") > 20


def test_a_format_goes_through_the_registry(tmp_path):
    """On every op and kernel: compiled kernels do not decode the format, and the others get the dequantised weight."""
    tree = _added(tmp_path, FORMAT)
    some = "(lora_linear or ia3_dx_dl or dequantize)"
    assert _passes(tree, "tests/ops/test_every_op.py", "-k", f"every_format and halves and {some}") >= 18
    assert _passes(tree, "tests/frozen", "tests/nn/test_quantized.py", "-k", "are_named or halves") >= 20
