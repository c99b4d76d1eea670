"""The house rules that a test can check: one stem for each op, imports that point down, small files, a light import.

Each rule is a function from a tree to its violations. It runs on this tree, and on trees with planted violations.
"""

import ast
import os
import re
from pathlib import Path

import pytest

from tests.import_graph import circle, import_graph, imported
from tests.interpreter import python

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "pypeft_fast"
# From the bottom up. A module may import modules of its own layer and of lower layers; "" is the package itself.
LAYERS = [
    (
        "_C",
        "_derivative",
        "_dispatcher",
        "_flops",
        "_heap",
        "_library",
        "_native",
        "_op",
        "_storage",
        "_tuning",
        "_when_imported",
        "kernels",
    ),
    ("frozen",),
    ("ops",),
    ("autograd",),
    ("testing",),
    ("nn",),
    ("model",),
    ("", "_own"),
    ("finetune",),
    ("serve",),
    ("cli", "__main__"),
]
LAYER = {name: height for height, names in enumerate(LAYERS) for name in names}
CODE = ("kernels", PACKAGE, "csrc", "bench", "examples", "tests")
MOST_LINES = 400


def files(root, folder, *suffixes):
    """The files below a folder with these suffixes, or a single file. The link pypeft_fast/kernels is not followed."""
    if (root / folder).is_file():
        return [root / folder]
    walk = os.walk(root / folder)
    return sorted(Path(d) / f for d, _, names in walk for f in names if f.endswith(suffixes) and "__pycache__" not in d)


def defines_an_op(path):
    calls = (n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call))
    return any(isinstance(f, ast.Name) and f.id == "Op" for f in calls)


def is_kernel(path):
    """Whether a file is a kernel: a Triton file without a leading _, or a C++ or CUDA file that registers an op."""
    return path.name[0] != "_" if path.suffix == ".py" else "LIBRARY_IMPL(" in path.read_text()


def stem_violations(root):
    kernels = [p for f in ("kernels", "csrc/cpu", "csrc/cuda") for p in files(root, f, ".py", ".cpp", ".cu")]
    ops = {p.stem: p for p in files(root, f"{PACKAGE}/ops", ".py")}
    found = [f"{p.relative_to(root)}: no op {p.stem}" for p in kernels if is_kernel(p) and p.stem not in ops]
    for stem, path in ops.items():
        if defines_an_op(path):
            needed = (f"tests/ops/test_{stem}.py", f"{PACKAGE}/testing/ops/{stem}.py")
            found += [f"{path.relative_to(root)}: no {n}" for n in needed if not (root / n).is_file()]
    return found


def layer(dotted):
    """The layer of a dotted name: that of its second part, or of the package for a public name."""
    name = dotted.split(".")[1] if "." in dotted else ""
    return LAYER.get(name, LAYER[""])


def import_violations(root):
    found = []
    for path in (p for f in (*CODE, "setup.py") if f != "csrc" for p in files(root, f, ".py")):
        where, top = path.relative_to(root), path.relative_to(root).parts[0]
        parts = (PACKAGE, *where.parts) if top == "kernels" else where.parts
        mine = parts[1].removesuffix(".py").replace("__init__", "") if top in ("kernels", PACKAGE) else None
        if mine is not None and mine not in LAYER:
            found.append(f"{where}: {mine} belongs to no layer")
            continue
        for line, name in imported(path, root):
            target = name.split(".")[0]
            if target in ("tests", "bench", "examples") and target != top and (top, target) != ("tests", "bench"):
                found.append(f"{where}:{line}: imports {name}")
            if target == "kernels" and top != "tests":
                found.append(f"{where}:{line}: imports {name}, which is another package's; write {PACKAGE}.{name}")
            if name.startswith(f"{PACKAGE}.testing") and mine not in (None, "testing"):
                found.append(f"{where}:{line}: imports {name}, which is for tests")
            if target == PACKAGE and mine is not None and layer(name) > LAYER[mine]:
                found.append(f"{where}:{line}: {mine} imports {name}, which is above it")
    return found


def circle_violations(root):
    """Circles of imports, also by imports in functions and by importlib."""
    code = [path for folder in ("kernels", PACKAGE, "bench", "examples") for path in files(root, folder, ".py")]
    found = circle(import_graph(code, root))
    return [f"a circle of imports: {' -> '.join(found)}"] if found else []


def size_violations(root):
    code = (p for f in CODE for p in files(root, f, ".py", ".cpp", ".cu", ".cuh", ".h"))
    lines = {p.relative_to(root): len(p.read_text().splitlines()) for p in code}
    return [f"{path}: {n} lines" for path, n in lines.items() if n > MOST_LINES]


def link_violations(root):
    link, found = root / PACKAGE / "kernels", []
    if not link.is_symlink() or os.readlink(link) != "../kernels":
        found.append(f"{PACKAGE}/kernels is not a link to ../kernels")
    if (root / "kernels/__init__.py").exists():
        found.append("kernels/__init__.py would make kernels/ a package of its own")
    return found


def document_violations(root):
    """Links and paths in backticks in the documents that do not exist; X stands for the name of any op."""
    found = []
    pages = sorted((root / "docs").glob("*.md"))
    for document in ("README.md", "CONTRIBUTING.md", *(page.relative_to(root).as_posix() for page in pages)):
        links = re.findall(r"\]\(([^):#]+)\)", (root / document).read_text())
        found += [f"{document}: {link}" for link in links if not ((root / document).parent / link).exists()]
        quoted = re.findall(rf"`((?:{'|'.join(CODE)})/[\w./-]+)`", (root / document).read_text())
        found += [f"{document}: {path}" for path in quoted if "X." not in path and not (root / path).exists()]
    return found


RULES = [stem_violations, import_violations, circle_violations, size_violations, link_violations, document_violations]


@pytest.mark.parametrize("rule", RULES)
def test_this_tree_breaks_no_rule(rule):
    assert rule(ROOT) == []
    assert files(ROOT, PACKAGE, ".py") and files(ROOT, "kernels", ".py") and files(ROOT, "csrc/cpu", ".cpp")


BARE = {"pypeft_fast/ops/bare.py": "bare = Op('bare()')"}
BROKEN = {
    stem_violations: [
        ({"kernels/lost.py": ""}, "kernels/lost.py: no op lost"),
        ({"csrc/cpu/lost.cpp": "STABLE_TORCH_LIBRARY_IMPL(a, CPU, m) {}"}, "csrc/cpu/lost.cpp: no op lost"),
        ({"csrc/cuda/lost.cu": "STABLE_TORCH_LIBRARY_IMPL(a, CUDA, m) {}"}, "csrc/cuda/lost.cu: no op lost"),
        (BARE | {"pypeft_fast/testing/ops/bare.py": ""}, "pypeft_fast/ops/bare.py: no tests/ops/test_bare.py"),
        (BARE | {"tests/ops/test_bare.py": ""}, "pypeft_fast/ops/bare.py: no pypeft_fast/testing/ops/bare.py"),
    ],
    import_violations: [
        ({"pypeft_fast/ops/a.py": "from ..autograd.lora import f"}, "ops imports pypeft_fast.autograd.lora.f"),
        ({"pypeft_fast/testing/a.py": "from ..nn.b import x"}, "testing imports pypeft_fast.nn.b.x"),
        ({"pypeft_fast/cli/a.py": "from ..testing import sample"}, "which is for tests"),
        ({"pypeft_fast/nn/a.py": "def f():\n  from .. import model"}, "a.py:2: nn imports pypeft_fast.model"),
        ({"pypeft_fast/_op.py": "import pypeft_fast.ops.a"}, "_op imports pypeft_fast.ops.a"),
        ({"pypeft_fast/autograd/__init__.py": "from ..nn import x"}, "autograd imports pypeft_fast.nn.x"),
        ({"pypeft_fast/model/a/b.py": "from ...cli import x"}, "model imports pypeft_fast.cli.x"),
        ({"pypeft_fast/finetune/a.py": "from ..cli.main import main"}, "finetune imports pypeft_fast.cli.main.main"),
        ({"pypeft_fast/model/a.py": "from ..finetune.b import c"}, "model imports pypeft_fast.finetune.b.c"),
        ({"pypeft_fast/model/a.py": "from .. import public"}, "model imports pypeft_fast.public"),
        ({"kernels/a.py": "from ..ops import philox"}, "kernels imports pypeft_fast.ops.philox"),
        ({"pypeft_fast/extra/a.py": ""}, "extra belongs to no layer"),
        ({"pypeft_fast/cli/a.py": "import tests.ops"}, "imports tests.ops"),
        ({"bench/a.py": "from tests import ops"}, "imports tests.ops"),
        ({"bench/b.py": "import examples.demo"}, "imports examples.demo"),
        ({"pypeft_fast/ops/a.py": "import kernels.a"}, "which is another package's"),
    ],
    circle_violations: [
        ({"pypeft_fast/nn/b.py": "from .c import d", "pypeft_fast/nn/c.py": "def f():\n  from . import b"}, "nn.c -> "),
        ({"pypeft_fast/nn/b.py": "from .c import d", "pypeft_fast/nn/c.py": "import pypeft_fast.nn.b"}, "nn.b -> "),
        (
            {"pypeft_fast/__init__.py": "from .nn.b import d", "pypeft_fast/nn/b.py": "from pypeft_fast import e"},
            "nn.b",
        ),
        ({"pypeft_fast/ops/a.py": "import importlib\nimportlib.import_module('._check', __package__)"}, "ops._check"),
        ({"pypeft_fast/_op.py": "f = lambda n: import_module(f'{__package__}.ops.{n}')"}, "pypeft_fast._op -> "),
        ({"kernels/_a.py": "from .a import f"}, "pypeft_fast.kernels._a"),
        ({"bench/a.py": "from . import b", "bench/b.py": "from .c import d", "bench/c.py": "import bench.a"}, "ch.b"),
    ],
    size_violations: [({"csrc/cpu/a.cpp": "//\n" * 401}, "csrc/cpu/a.cpp: 401 lines")],
    link_violations: [
        ({"pypeft_fast/kernels/a.py": ""}, "is not a link"),
        ({"kernels/__init__.py": ""}, "would make kernels/ a package"),
    ],
    document_violations: [
        ({"README.md": "see `csrc/cpu/gone.cpp`"}, "README.md: csrc/cpu/gone.cpp"),
        ({"docs/a.md": "[b](../bench/b.md) [c](https://c.org)"}, "docs/a.md: ../bench/b.md"),
    ],
}
SOUND = {
    "README.md": "`csrc/cpu/a.cpp` `csrc/cpu/X.cpp` `ops/b.py`",
    "CONTRIBUTING.md": "`pypeft_fast/ops/a.py`",
    "kernels/a.py": "from ._a import f",
    "kernels/_a.py": "import torch",
    "csrc/cpu/rows.cpp": "int helper();\n" * 400,
    "csrc/cpu/a.cpp": "STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) {}",
    "pypeft_fast/__init__.py": "from . import nn\nfrom .model import get",
    "pypeft_fast/_op.py": "from . import _native",
    "pypeft_fast/_native.py": "import torch",
    "pypeft_fast/ops/a.py": "from .._op import Op\na = Op('a()')\ndef f():\n  from ..kernels.a import a",
    "pypeft_fast/ops/_check.py": "from . import a",
    "pypeft_fast/nn/b.py": "from ..ops.a import a",
    "pypeft_fast/cli/main.py": "from .. import public\nimport pypeft_fast as pf\nfrom ..finetune import a",
    "pypeft_fast/finetune/a.py": "import pypeft_fast\nfrom ..model.c import d",
    "pypeft_fast/testing/ops/a.py": "from ...ops.a import a\nfrom ..case import Case",
    "tests/ops/test_a.py": "from pypeft_fast.testing import Case\nfrom tests import device\nimport kernels",
}


def plant(root, tree):
    for name, text in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    if not (root / PACKAGE / "kernels").exists():
        (root / PACKAGE / "kernels").symlink_to("../kernels")


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_each_rule_accepts_a_sound_tree_and_finds_what_is_planted(rule, tmp_path):
    plant(tmp_path / "sound", SOUND)
    assert rule(tmp_path / "sound") == []
    for i, (broken, message) in enumerate(BROKEN[rule]):
        plant(tmp_path / str(i), {**broken, **{k: v for k, v in SOUND.items() if k not in broken}})
        (violation,) = rule(tmp_path / str(i))
        assert message in violation


PROBE = """
import sys
def audit(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "urllib.Request", "subprocess.Popen"):
        raise RuntimeError(f"{event} at import")
sys.addaudithook(audit)
IMPORT
print(*sorted({"transformers", "triton", "peft", "matplotlib", "rich"} & set(sys.modules)))
"""


def probe(statement):
    """The heavy modules that a statement imports, or the error if it uses the network or starts a process."""
    done = python("-c", PROBE.replace("IMPORT", statement))
    return done.stdout.strip() + done.stderr.strip()[-200:]


def test_import_is_light_and_silent():
    assert probe("import pypeft_fast") == ""
    assert probe("import pypeft_fast, rich") == "rich"
    assert "socket.connect at import" in probe("import pypeft_fast, socket; socket.socket().connect(('127.0.0.1', 9))")
