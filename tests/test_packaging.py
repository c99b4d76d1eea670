"""The contents of wheel and sdist, and that an installed wheel works with the package `kernels` of Hugging Face."""

import ast
import base64
import hashlib
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
import setuptools
from torch.utils import cpp_extension

from pypeft_fast import __version__, _native

ROOT = Path(__file__).resolve().parents[1]
KERNELS = {path.name for path in (ROOT / "kernels").glob("*.py")}


def run(*command, **environment):
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def clone(folder):
    """Copies the tree without the results of builds."""
    ignored = shutil.ignore_patterns(".*", "build", "dist", "out", "*.egg-info", "*.so", "__pycache__")
    return shutil.copytree(ROOT, folder, symlinks=True, ignore=ignored)


def build(tree, *what, mode="none"):
    out = tree.parent / "dist"
    run(sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", out, tree, PYPEFT_FAST_BUILD=mode)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"), None)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(wheel, sdist); the wheel is built from the sdist, without the C++ library."""
    return build(clone(tmp_path_factory.mktemp("build") / "tree"))


def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def assert_holds_the_package(wheel):
    inside = names(wheel)
    assert {Path(n).name for n in inside if n.startswith("pypeft_fast/kernels/")} == KERNELS
    assert {n.split("/")[0] for n in inside} == {"pypeft_fast", f"pypeft_fast-{__version__}.dist-info"}
    here = {p.relative_to(ROOT).as_posix() for p in (ROOT / "pypeft_fast").rglob("*") if p.suffix in (".py", ".html")}
    assert here - inside == set()
    assert "pypeft_fast/py.typed" in inside  # type checkers need py.typed


def test_wheel_holds_every_module_and_no_top_level_kernels(built, tmp_path):
    assert_holds_the_package(built[0])
    tree = clone(tmp_path / "tree")
    stale = tree / "build/lib/pypeft_fast"  # as an earlier `make wheel-cuda` leaves its library
    stale.mkdir(parents=True)
    (stale / "_C_cuda.abi3.so").write_text("")
    from_tree, _ = build(tree, "--wheel")  # from the tree, through the link
    assert names(from_tree) == names(built[0])


def test_a_planted_top_level_package_is_noticed(built, tmp_path):
    spoiled = shutil.copy(built[0], tmp_path)
    with zipfile.ZipFile(spoiled, "a") as archive:
        archive.writestr("kernels/__init__.py", "")
    with pytest.raises(AssertionError):
        assert_holds_the_package(spoiled)


def test_sdist_holds_all_that_a_build_needs(built):
    with tarfile.open(built[1]) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    assert {*sources, "setup.py", "pyproject.toml", "README.md", "LICENSE"} - inside == set()
    assert not any(name.startswith(("tests", "bench", "out")) for name in inside)


def altered(site, name):
    """The files of an installed distribution whose hash differs from its RECORD."""
    info = next(site.glob(f"{name}-*.dist-info"))
    found = []
    for line in (info / "RECORD").read_text().splitlines():
        file, digest, _ = line.rsplit(",", 2)
        if digest and (site / file).is_file():
            now = hashlib.sha256((site / file).read_bytes()).digest()
            if base64.urlsafe_b64encode(now).rstrip(b"=").decode() != digest.removeprefix("sha256="):
                found.append(file)
    return found


USE = """
import sys
site, own = sys.argv[1:3]
sys.path[:0] = [site]
sys.path.append(own)
import kernels, torch, pypeft_fast as pf
assert kernels.__file__.startswith(site) and callable(kernels.get_kernel), kernels.__file__
for name in sys.argv[3:]:
    module = __import__(f"pypeft_fast.kernels.{name}", fromlist=["_"])
    assert module.__file__.startswith(site), module.__file__
x, w, a, b = torch.ones(2, 3), torch.ones(4, 3), torch.ones(1, 3), torch.ones(4, 1)
assert torch.equal(pf.lora_linear(x, w, a, b, scaling=0.5), torch.full((2, 4), 4.5))
with pf.using("triton"):
    assert torch.equal(torch.ops.pypeft_fast.lora_shrink(x, a, 0.0, None)[0], torch.full((2, 1), 3.0))
print(pf.__file__, pf.kernels()["lora_shrink"]["cpu"])
"""


def test_an_installed_wheel_and_hugging_face_kernels_leave_each_other_alone(built, tmp_path):
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path)}))
    theirs = distribution("kernels")
    for file in theirs.files:
        if file.parts[0] != "..":
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.locate(), site / file)
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--ignore-installed")
    run(*pip, "--prefix", tmp_path, built[0])
    assert altered(site, "kernels") == [] and altered(site, "pypeft_fast") == []

    own = sysconfig.get_path("purelib")  # for torch and triton; -S disables the hooks of the development install
    stems = sorted(Path(name).stem for name in KERNELS)
    use = run(sys.executable, "-I", "-S", "-c", USE, site, own, *stems, TRITON_INTERPRET="1")
    file, reason = use.split(maxsplit=1)
    assert Path(file).parent == site / "pypeft_fast" and "PYPEFT_FAST_BUILD=none" in reason
    assert (tmp_path / "bin/pypeft-fast").is_file()

    (site / "kernels/__init__.py").write_text("")
    assert altered(site, "kernels") == ["kernels/__init__.py"]


def test_an_editable_install_works_from_the_folder_of_the_clone(tmp_path):
    """The folder that contains the clone is on sys.path, and the clone has the name of the package."""
    clone(tmp_path / "pypeft_fast")
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--ignore-installed")
    editable = ("--no-build-isolation", "--prefix", tmp_path / "site", "--editable", tmp_path / "pypeft_fast")
    run(*pip, *editable, PYPEFT_FAST_BUILD="none")
    site, own = sysconfig.get_path("purelib", vars={"base": str(tmp_path / "site")}), sysconfig.get_path("purelib")
    use = (
        f"import site, sys; sys.path.append({own!r}); site.addsitedir({site!r}); import pypeft_fast as pf\n"
        "from importlib.util import find_spec\n"
        "print(pf.__file__, pf.lora_linear.__name__, *(find_spec(n) for n in ('bench', 'csrc', 'examples')))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-S", "-c", use]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    file, name, *others = done.stdout.split()
    assert Path(file).resolve() == tmp_path / "pypeft_fast/pypeft_fast/__init__.py"
    assert name == "lora_linear" and others == ["None"] * 3


def test_an_nvcc_far_from_its_toolkit_does_not_hide_the_toolkit(tmp_path, monkeypatch):
    """PyTorch uses the folder of the nvcc on PATH, which may be a script that calls another nvcc."""
    for nvcc in (tmp_path / "script/bin/nvcc", tmp_path / "toolkit/bin/nvcc"):
        nvcc.parent.mkdir(parents=True)
        nvcc.write_text("")
    (tmp_path / "toolkit/include").mkdir()
    (tmp_path / "toolkit/include/cuda_runtime.h").write_text("")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.setenv("PYPEFT_FAST_BUILD", "none")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path / "script"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    assert runpy.run_path(str(ROOT / "setup.py"))["cuda_home"]() == str(tmp_path / "toolkit")


@pytest.mark.parametrize(
    "command,mode,local",
    [("bdist_wheel", "cuda", "+cu130"), ("bdist_wheel", "cpu", ""), ("bdist_wheel", "none", ""), ("sdist", "cuda", "")],
)
def test_the_version_of_a_cuda_build_names_the_toolkit(tmp_path, monkeypatch, command, mode, local):
    """pip takes two wheels of one version for the same wheel. An sdist has no library."""
    nvcc = tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    nvcc.chmod(0o755)
    (tmp_path / "include").mkdir()
    (tmp_path / "include/cuda_runtime.h").write_text("")
    asked = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **options: asked.update(options))
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    monkeypatch.setenv("PYPEFT_FAST_BUILD", mode)
    monkeypatch.setattr(sys, "argv", ["setup.py", command])
    runpy.run_path(str(ROOT / "setup.py"))
    assert asked["options"]["egg_info"] == {"tag_build": local}


def test_the_development_install_has_one_library_for_every_python():
    assert _native.LIBRARY_PATH.name == "_C.abi3.so"


@pytest.mark.slow
def test_built_wheel_is_one_for_every_python(tmp_path):
    wheel, _ = build(clone(tmp_path / "tree"), "--wheel", mode="cpu")
    assert wheel.name.startswith(f"pypeft_fast-{__version__}-cp310-abi3-linux_")
    assert "pypeft_fast/_C.abi3.so" in names(wheel)


def required(text):
    """The normalised names of the distributions in a list of requirements."""
    found = re.findall(r"^\s*\"?([A-Za-z][\w.-]*)\s*(?:[=<>~!;\"#,]|$)", text, re.MULTILINE)
    return {name.lower().replace("_", "-") for name in found}


def asked_for(*folders):
    """The distributions of the modules in the calls need("…")."""
    calls = [
        node
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "need"
    ]
    modules = {a.value for call in calls for a in call.args if isinstance(a, ast.Constant)}
    return {{"yaml": "pyyaml"}.get(module, module).replace("_", "-") for module in modules}


def test_the_extra_cli_has_what_the_command_and_the_examples_ask_for():
    text = (ROOT / "pyproject.toml").read_text()
    base = text[text.index("\ndependencies = [") : text.index("[project.optional-dependencies]")]
    extra = text[text.index("\ncli = [") : text.index("\ntest = [")]
    wanted = asked_for("pypeft_fast/cli", "pypeft_fast/finetune", "examples")
    assert {"accelerate", "matplotlib", "gguf", "pyyaml"} <= wanted
    assert wanted - required(base) - required(extra) == set()
    assert "'.[cli]'" in (ROOT / "README.md").read_text()


def test_make_demo_installs_what_the_demo_needs_and_no_tools():
    """The demo installs no linters, no headers of CUDA, and no pytest."""
    demo = required((ROOT / "requirements-demo.txt").read_text())
    assert demo >= asked_for("examples") | {"torch", "setuptools", "ninja", "numpy", "transformers", "tqdm"}
    assert not demo & required((ROOT / "requirements-dev.txt").read_text())
    done = run("make", "-n", "-C", ROOT, "demo", "QUICK=1", "TORCH=cpu")
    assert "examples/demo.py --quick" in done and "requirements-dev.txt" not in done
