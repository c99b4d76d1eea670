"""The script that chose the defaults of finetune, on a tiny model, and the table in docs/command.md."""

import json
from pathlib import Path

import pytest

from bench import defaults
from pypeft_fast.finetune.training.schedule import schedule

ROOT = Path(defaults.__file__).parents[1]


def rows(text):
    """The rows of a Markdown table, each as {column: cell}."""
    head, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.strip().splitlines())
    return [dict(zip(head, line, strict=True)) for line in lines]


def test_runs_are_kept_and_made_once(tiny_model, tmp_path, monkeypatch, capsys):
    data, results = tmp_path / "d.jsonl", tmp_path / "out" / "defaults.jsonl"
    lines = [{"prompt": f"what is {i}", "completion": "blue light"} for i in range(12)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    real = defaults.load_base
    monkeypatch.setattr(defaults, "load_base", lambda name: real(str(tiny_model)))
    asked = ["--sets", str(data), "--results", str(results), "--methods", "lora", "ia3", "--rates", "0.01"]
    defaults.main([*asked, "--seeds", "0"])
    lora, ia3 = rows(capsys.readouterr().out)
    assert (lora["set"], lora["method"], lora["rate"], lora["seeds"]) == (str(data), "lora", "0.01", "1")
    assert ia3["method"] == "ia3" and lora["examples"] == "12" and lora["epochs"] == f"{schedule(12)['epochs']:g}"
    assert float(lora["kept"]) < float(lora["before"]) - 0.1 and lora["fell"] == "1 of 1"
    assert float(lora["kept"]) <= float(lora["with patience"])

    made, run = [], defaults.run
    monkeypatch.setattr(defaults, "run", lambda *which: made.append(which) or run(*which))
    defaults.main(["--show", "--results", str(results)])
    assert rows(capsys.readouterr().out) == [lora, ia3] and made == []
    defaults.main([*asked, "--seeds", "0", "1"])
    assert made == [(str(data), "lora", 0.01, 1), (str(data), "ia3", 0.01, 1)], "the others are in the file"
    assert {its["seeds"] for its in rows(capsys.readouterr().out)} == {"2"}
    assert len(results.read_text().splitlines()) == 4


def test_what_a_row_tells():
    common = {"set": "s", "method": "lora", "rate": 5e-4, "examples": 10, "epochs": 4.0, "steps_per_epoch": 5}
    falls = common | {"held_out": [[0, 4.0], [5, 3.0], [10, 2.0], [20, 1.0]]}
    rises = common | {"held_out": [[0, 2.0], [5, 3.0], [10, 3.5], [15, 3.6], [20, 2.5]]}
    (told,) = rows(defaults.table([falls, rises]))
    assert (told["seeds"], told["before"], told["kept"], told["fell"]) == ("2", "3.000", "1.750", "1 of 2")
    assert (told["at epoch"], told["at the end"]) == ("4.0", "1.750")
    assert told["with patience"] == "2.000"  # the second run stops before its lowest loss


@pytest.mark.parametrize(("patience", "lowest"), [(1, 3.0), (2, 2.0), (3, 2.0)])
def test_stopping_early(patience, lowest):
    assert defaults.patient([3.0, 3.1, 2.0, 2.5, 2.4], patience) == lowest


def test_more_data_takes_fewer_epochs():
    epochs = [schedule(n)["epochs"] for n in (1, 10, 40, 70, 100, 300, 5000)]
    assert epochs == sorted(epochs, reverse=True) and epochs[0] > epochs[3] > epochs[-1] == 3
    for n in (10, 70, 300, 5000):  # a run always has enough steps
        assert schedule(n)["epochs"] * n / schedule(n)["batch_size"] >= 20
    assert schedule(0) == schedule(1)


@pytest.mark.parametrize("part", ["TUNED", "CONFIRMED"])
def test_the_sets_are_there(part):
    from pypeft_fast.finetune.data.load import load_data

    names = [str(ROOT / name) if name == defaults.FAQ else name for name in getattr(defaults, part)]
    assert all(len(load_data(name)) >= 10 for name in names)
    assert not set(defaults.TUNED) & set(defaults.CONFIRMED)


def test_the_document_holds_what_the_command_prints():
    kept = defaults.kept(ROOT / "bench" / "results" / "defaults.jsonl")
    table, document = defaults.table(kept.values()), (ROOT / "docs" / "command.md").read_text()
    assert table in document
    if "The held-out loss fell in each run." in document:
        assert all(told["fell"] == f"{told['seeds']} of {told['seeds']}" for told in rows(table))
    if "would have kept the same adapters" in document:
        assert all(told["kept"] == told["with patience"] for told in rows(table))
