"""The bench of rows of several adapters runs, and reports no speed of a model whose rows are wrong."""

import json
import pkgutil

import pytest

import bench
from bench import multi_adapters
from pypeft_fast.model.layers.lora_rows import LoRARows
from tests.interpreter import python

SHORT = ["--seconds", "0", "--layers", "1"]


@pytest.mark.usefixtures("set_threads")  # the benchmark sets one thread
def test_the_tables_are_written(tmp_path):
    multi_adapters.main([*SHORT, "--output", str(tmp_path)])
    found = json.loads((tmp_path / "multi_adapters.json").read_text())
    assert len(found["targets"]) == len(multi_adapters.CASES) + len(multi_adapters.NAMED)
    assert "64 names" in (tmp_path / "multi_adapters.md").read_text()


@pytest.mark.usefixtures("set_threads")
def test_no_speed_of_rows_that_are_wrong(tmp_path, monkeypatch):
    right = LoRARows.linear
    monkeypatch.setattr(LoRARows, "linear", lambda self, *args: 1.5 * right(self, *args))
    with pytest.raises(AssertionError, match="from the adapter alone"):
        multi_adapters.main([*SHORT, "--output", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_every_bench_can_be_imported():
    names = [m.name for m in pkgutil.walk_packages(bench.__path__, "bench.", onerror=pytest.fail)]
    assert len(names) > 40 and "bench.multi_adapters" in names
    done = python("-c", f"import importlib\nfor name in {names!r}: importlib.import_module(name)")
    assert done.returncode == 0, done.stderr
