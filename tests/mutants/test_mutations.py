"""Every mutation applies to one line of the tree, and the runner reports the result of the tests."""

import pytest

from . import run
from .mutation import ROOT, Mutation


def test_every_mutation_applies_to_one_line_and_its_tests_are_there():
    for mutation in run.MUTATIONS:
        assert "\n" not in mutation.old + mutation.new, mutation.name
        mutation.mutated()
        assert mutation.tests and mutation.needs in ("", *run.ISAS), mutation.name
        for test in mutation.tests:
            assert (ROOT / test.split()[0].split("::")[0]).exists(), (mutation.name, test)


def test_every_folder_has_at_least_three_mutations():
    assert len(run.MUTATIONS) >= 45 and len({m.name for m in run.MUTATIONS}) == len(run.MUTATIONS)
    for folder in ("csrc/cpu/", "kernels/", "pypeft_fast/autograd/", "pypeft_fast/nn/", "pypeft_fast/model/layers/"):
        assert sum(m.file.startswith(folder) for m in run.MUTATIONS) >= 3, folder


@pytest.fixture
def tree(tmp_path):
    """A tree with a file of one line, and tests of the file."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "kernels/one.py").write_text("VALUE = 1\n")
    (tmp_path / "tests/test_one.py").write_text(
        "import os, pathlib, pytest\n"
        "VALUE = pathlib.Path('kernels/one.py').read_text().split()[-1]\n"
        "def test_other():\n    pass\n"
        "@pytest.mark.parametrize('how', ['a - b'])\n"
        "def test_value(how):\n    if VALUE == '3':\n        os.abort()\n    assert VALUE == '1'\n"
    )
    return tmp_path


def mutation(old, new, *tests, **options):
    return Mutation("changed", "kernels/one.py", old, new, tests or ("tests/test_one.py",), **options)


@pytest.mark.parametrize("old", ["VALUE = 2", "E"])
def test_a_line_that_has_changed_is_an_error_that_names_the_mutation(tree, old):
    (tree / "kernels/one.py").write_text("VALUE = 1  # E\n")
    with pytest.raises(ValueError, match=f"changed: '{old}' is . times in kernels/one.py, expected once"):
        mutation(old, "x").mutated(tree)


def test_the_tree_is_restored_after_a_mutation(tree):
    with pytest.raises(KeyError), mutation("1", "2").applied(tree):
        assert (tree / "kernels/one.py").read_text() == "VALUE = 2\n"
        raise KeyError
    assert (tree / "kernels/one.py").read_text() == "VALUE = 1\n"


def test_a_mutation_that_does_not_compile_for_the_emulator_is_not_killed(tree):
    (tree / "tests/test_one.py").write_text("def test(): raise RuntimeError('the emulator does not compile: g++')\n")
    with pytest.raises(run.NotTried, match="does not compile"):
        run.first_failure(tree, ["tests/test_one.py"])


@pytest.mark.parametrize("new,killed", [("1 ", None), ("2", ""), ("3", " (signal 6)")])
def test_the_first_test_that_fails_or_dies_kills_the_mutation(tree, monkeypatch, new, killed):
    monkeypatch.setattr(run.library, "put_into", lambda tree: None)
    wrong = mutation("1", new, "tests/test_one.py -k other", "tests/test_one.py")
    found = run.killer(wrong, tree)
    assert found == (None if killed is None else f"tests/test_one.py::test_value[a - b]{killed}")
    assert run.verdict(wrong, found)[1] == (killed is not None)
    assert run.verdict(mutation("1", new, equivalent="so it is"), found)[1] == (killed is None)


def test_a_mutation_whose_tests_cannot_be_run_is_not_tried(tree, monkeypatch):
    monkeypatch.setattr(run.library, "put_into", lambda tree: None)
    for test in ("tests/test_one.py -k nothing", "tests/absent.py"):
        with pytest.raises(run.NotTried, match="pytest tests/"):
            run.killer(mutation("1", "2", test), tree)


def test_the_library_is_compiled_again_if_an_included_file_has_changed(tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/a.cpp").write_text('#include "cpu/a.h"\n#include <cmath>\n#define ISA_BODY "cpu/body.h"\n')
    (tmp_path / "cpu/a.h").write_text('#include "cpu/a.h"\n')
    (tmp_path / "cpu/body.h").write_text("")
    texts = {}
    run.library._texts(tmp_path, "cpu/a.cpp", texts)
    assert set(texts) == {"cpu/a.cpp", "cpu/a.h", "cpu/body.h"}
    assert run.library._digest(texts) != run.library._digest(texts | {"cpu/body.h": "int x;"})


def test_an_unknown_name_is_an_error():
    with pytest.raises(SystemExit, match="--only absent: no such mutation; --list prints their names"):
        run.chosen(["absent"])
