"""The output of benchmarks: the machine, aligned columns, pictures, and documents filled from results."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.interpreter import ROOT, python


def test_the_machine_is_told_by_family_model_and_caches(tmp_path):
    """In a virtual machine several generations of CPUs have the same name."""
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel\t\t: 3\n"
    )
    for number, (level, kind, size) in enumerate([(1, "Data", "48K"), (1, "Instruction", "32K"), (2, "Unified", "1M")]):
        index = tmp_path / f"index{number}"
        index.mkdir()
        for name, value in (("level", level), ("type", kind), ("size", size)):
            (index / name).write_text(f"{value}\n")
    done = python(
        "-c",
        "import sys; from pathlib import Path; from bench.harness import report, timing\n"
        "folder = Path(sys.argv[1]); facts = timing.cpu_facts(folder / 'cpuinfo')\n"
        "print(facts['cpu family'], facts['model'], facts['model name'], timing.caches(folder), sep='; ')\n"
        "print(timing.cpu_facts(folder / 'none'), repr(timing.caches(folder / 'none')))\n"
        "print(report.headline(timing.machine()))",
        tmp_path,
    )
    first, nothing, headline = done.stdout.splitlines()
    assert (first, nothing) == ("26; 2; AMD EPYC; L1 48K L2 1M", "{} ''"), done.stderr
    assert f"peft {version('peft')}, transformers {version('transformers')}" in headline
    assert "cores " in headline and ("family " in headline or not Path("/proc/cpuinfo").is_file())


def test_columns_stand_under_each_other():
    done = python(
        "-c",
        "from bench.harness import report, targets\n"
        "line = report.aligned(('case', 'a', 'a longer name'), ['short', 'the longest case'])\n"
        "print(line(('case', 'a', 'a longer name'))); print(line(('short', 1.25, '')))\n"
        "print(targets.markdown(('case', 'n'), [('one', 1), ('another', 12345)]))\n"
        "print(report.verdicts([('short', '1', '<= 2', 'pass'), ('longer', '10', '<= 2', 'falls short')]))",
    )
    lines = done.stdout.splitlines()
    assert len({len(line) for line in lines[:2]}) == 1 and lines[1].startswith("short ")
    assert lines[2:6] == [
        "| case    | n     |",
        "| ------- | ----- |",
        "| one     | 1     |",
        "| another | 12345 |",
    ], done.stderr
    assert [line.index("<=") for line in lines[6:]] == [12, 12]


@pytest.mark.parametrize("lacks", ["", "layer.png"])
def test_what_is_published_is_what_a_run_wrote(tmp_path, lacks):
    for kind in ("json", "md", "png"):
        (tmp_path / f"layer.{kind}").write_text("new")
    (tmp_path / lacks).unlink() if lacks else None
    (tmp_path / "results").mkdir()
    (tmp_path / "results/layer.json").write_text("old")
    done = python(
        "-c",
        "import sys; from pathlib import Path; from bench import publish\n"
        "folder = Path(sys.argv[1]); print(publish.publish(folder, folder / 'results'))",
        tmp_path,
    )
    written = (tmp_path / "results/layer.json").read_text()
    if lacks:
        assert done.returncode == 1 and "layer.png: not written" in done.stderr and written == "old"
    else:
        assert done.stdout == "['layer']\n" and written == "new", done.stderr


def test_a_part_of_the_rows_replaces_no_whole_table(tmp_path):
    """A short run; the targets, whose names have the worst case of a run in them, do not count as rows."""
    (tmp_path / "results").mkdir()
    done = python(
        "-c",
        "import sys; from pathlib import Path; from bench import publish; from bench.harness import report\n"
        "folder = Path(sys.argv[1])\n"
        "def write(to, cases, worst, batch='4x128'):\n"
        "    targets = (report.TARGET_HEADER, [(f'worst ({worst})', '1', '<= 2', 'pass')])\n"
        "    tables = [targets, (('case', 'ms'), [(case, 1.0) for case in cases])]\n"
        "    report.write(to, 'model', {'machine': {'cpu': 'a', 'batch': batch}}, tables)\n"
        "    (to / 'model.png').write_text('')\n"
        "def published(**options):\n"
        "    try: print(publish.publish(folder, folder / 'results', **options))\n"
        "    except SystemExit as refused: print(str(refused).split('remove')[0].replace(sys.argv[1], ''))\n"
        "write(folder / 'results', ['a', 'a', 'b'], 'a')\n"
        "write(folder, ['a', 'a', 'b', 'c'], 'b'); published()\n"
        "write(folder, ['a'], 'a'); published()\n"
        "write(folder, ['a', 'a', 'b', 'c'], 'a', '1x8'); published()\n"
        "published(drop_rows=True)",
        tmp_path,
    )
    lacks = "/model.md lacks {} rows of /results/model.md, and publishing would delete these: {}. "
    remedy = "Run the benchmark with all its cases, "
    assert done.stdout.splitlines() == [
        "['model']",
        lacks.format(3, "case a; case b; case c") + remedy,
        lacks.format(1, "batch 4x128") + remedy,
        "['model']",
    ], done.stderr


def test_tables_of_ranks_adapters_files_and_a_server_are_published_into_the_document(tmp_path):
    """Before a benchmark is published, the document says how to measure it."""
    found = tmp_path / "out"
    found.mkdir()
    (tmp_path / "results").mkdir()
    for name in ("ranks", "multi_adapters", "adapter_files", "serve"):
        (found / f"{name}.json").write_text("{}")
        (found / f"{name}.md").write_text(f"the table of {name}\n")
    (found / "ranks.png").write_bytes(b"")
    done = python(
        "-c",
        "import sys; from pathlib import Path; from bench import publish, readme\n"
        "folder, document = Path(sys.argv[1]), readme.DOCUMENTS[1].read_text()\n"
        "marks = [f'<!-- bench:{name} -->' for name in readme.UNMEASURED]\n"
        "assert all(mark in document for mark in marks)\n"
        "empty = ''.join(f'{mark}<!-- /bench -->' for mark in marks)\n"
        "print(readme.filled(empty, folder / 'results').count('bench-publish` measures'))\n"
        "print(publish.publish(folder / 'out', folder / 'results'))\n"
        "print(readme.filled(empty, folder / 'results').count('the table of'))",
        tmp_path,
    )
    assert done.stdout == "4\n['ranks', 'multi_adapters', 'adapter_files', 'serve']\n4\n", done.stderr


def test_nothing_to_publish_is_said(tmp_path):
    done = python(
        "-c",
        "from pathlib import Path; from bench import publish; publish.publish(Path('.'), Path('.'))",
        folder=tmp_path,
    )
    assert done.returncode == 1 and "holds no benchmark: run `make bench`" in done.stderr


def test_a_benchmark_writes_into_out_unless_told(tmp_path):
    done = python(
        "-c", "from bench.harness import parsers; print(parsers.of_layer('run', 'x', 1, 'y').parse_args([]).output)"
    )
    assert done.stdout == "out/bench\n", done.stderr


def test_the_documents_are_those_of_the_results():
    """README.md and docs/benchmarks.md hold the text that `python -m bench.readme` writes."""
    done = python(
        "-c",
        "from bench import readme\n"
        "for d in readme.DOCUMENTS: assert readme.filled(d.read_text(), readme.RESULTS) == d.read_text(), d",
    )
    assert done.returncode == 0, done.stderr
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 120 and readme.index("## Limits") < readme.index("## Two commands")
    results = json.loads((ROOT / "bench/results/fuse.json").read_text())
    document = (ROOT / "docs/benchmarks.md").read_text()
    assert all(measured in document for _, measured, *_ in results["targets"])


def test_a_picture_has_a_panel_for_each_dtype_and_our_name(tmp_path):
    done = python(
        "-c",
        "import sys; from bench.harness import report\n"
        "def result(dtypes, M, ours, r=16):\n"
        "    case = dict(dtypes=dtypes, M=M, K=2, N=3, r=r)\n"
        "    return dict(case=case, seconds={'frozen': 1.0, 'PEFT': 1.5, 'ours': ours})\n"
        "results = [result('float32', 8, 1.2), result('float32', 9, 1.1, r=64), result('bfloat16', 8, 1.0)]\n"
        "panels = report.by_dtype(results, ('PEFT', 'ours', 'addmm')); print(panels)\n"
        "report.bars(sys.argv[1] + '/a.svg', panels, 'time')",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "{'float32': (['9x2x3 r=64', '8x2x3'], {'PEFT': [1.5, 1.5], 'ours': [1.1, 1.2], 'addmm': [None, None]})"
    )
    assert "pypeft_fast" in (tmp_path / "a.svg").read_text()
