"""The benchmarks of quantised weights on small sizes: they run, check the results that they time, and write reports."""

import json

import pytest
import torch

from bench import quantized, quantized_model


@pytest.mark.usefixtures("set_threads")  # the benchmark sets one thread
def test_a_layer_in_every_format(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quantized, "STEPS", [(24, 128, 64)])
    monkeypatch.setattr(quantized, "DECODED", (1, 128, 64))
    quantized.main(["--seconds", "0", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "quantized.json").read_text())
    assert len(found["results"]) == 2 * len(quantized.FORMATS) and len(found["targets"]) == 3
    assert "PEFT" in found["results"]["nf4 24x128x64"] and "PEFT" not in found["results"]["fp8 24x128x64"]
    assert "nf4 step over our bfloat16 step" in capsys.readouterr().out


def test_a_wrong_result_is_not_timed():
    case = quantized.Case("nf4", 24, 128, 64)
    case.make()
    case.check()
    case.outputs = lambda weight: (torch.zeros(1),) if weight is case.frozen else (torch.ones(1),)
    try:
        case.check()
    except AssertionError as error:
        assert "from the decoded weight" in str(error)
    else:
        raise AssertionError("a wrong result was taken")


def test_a_model(tmp_path, capsys):
    options = ["--tiny", "--tokens", "16", "--output", str(tmp_path)]
    quantized_model.main([*options, "--only", "ours nf4", "PEFT over bitsandbytes nf4"])
    found = json.loads((tmp_path / "quantized_model.json").read_text())
    ours, peft = found["results"]["ours nf4"], found["results"]["PEFT over bitsandbytes nf4"]
    assert abs(ours["loss"] - peft["loss"]) < 0.1 and 0 < ours["peak"] < 5
    assert "peak resident set" in capsys.readouterr().out
