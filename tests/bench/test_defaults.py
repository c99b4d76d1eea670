"""The script behind finetune's defaults, on a tiny model."""

import importlib
import json

import pytest

from pypeft_fast.finetune.training.schedule import schedule

defaults = importlib.import_module("bench.defaults")


def test_a_line_a_run(tiny_model, tmp_path, monkeypatch, capsys):
    data = tmp_path / "d.jsonl"
    lines = [{"prompt": f"what is {i}", "completion": "blue light"} for i in range(12)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    real = defaults.load_base
    monkeypatch.setattr(defaults, "load_base", lambda name: real(str(tiny_model)))
    defaults.main(["--sets", str(data), "--rates", "0.01"])
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].strip("|").split("|")]
    assert cells[:4] == ["d.jsonl", "10", "0.01", f"{schedule(12)['epochs']:g}"]
    before, lowest, _, end = map(float, cells[4:])
    assert lowest <= end and lowest < before - 0.1


def test_more_data_takes_fewer_epochs():
    epochs = [schedule(n)["epochs"] for n in (1, 10, 40, 70, 100, 300, 5000)]
    assert epochs == sorted(epochs, reverse=True) and epochs[0] > epochs[3] > epochs[-1] == 3
    for n in (10, 70, 300, 5000):  # a run is never of a handful of steps
        assert schedule(n)["epochs"] * n / schedule(n)["batch_size"] >= 20
    assert schedule(0) == schedule(1)


@pytest.mark.parametrize("part", ["TUNED", "CONFIRMED"])
def test_the_sets_are_there(part):
    from pypeft_fast.finetune.data.load import load_data

    assert all(len(load_data(name)) >= 10 for name in getattr(defaults, part))
    assert not set(defaults.TUNED) & set(defaults.CONFIRMED)
