"""The benchmark of the server on a tiny model: it checks the answers, and reports no speed of wrong ones."""

import json

import pytest

from bench import serve


def test_the_ratio_is_reported_beside_a_check(tiny_model, tmp_path, capsys):
    serve.main(["--model", str(tiny_model), "--seconds", "0", "--tokens", "4", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "serve.json").read_text())
    assert set(found["results"]) == {"one adapter", "8 adapters"} and all(t > 0 for t in found["results"].values())
    ((_, ratio, limit, _),) = found["targets"]
    one, several = found["results"].values()
    assert float(ratio) == pytest.approx(one / several, abs=0.01) and limit == ">= 0.85"
    assert found["machine"]["cpu"] in capsys.readouterr().out
    assert "| 8 adapters" in (tmp_path / "serve.md").read_text()


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({"a": ["x", "y"], "b": ["z", "z"]}, "a: another answer beside other adapters"),
        ({"a": ["x", "x"], "b": ["x", "x"]}, "two adapters answer alike"),
    ],
)
def test_no_speed_of_wrong_answers(monkeypatch, answers, says):
    """answers: {adapter: [alone, among others]}"""

    async def ask_all(url, adapters, tokens):
        return [answers[name][len(adapters) > 1] for name in adapters]

    monkeypatch.setattr(serve, "ask_all", ask_all)
    with pytest.raises(SystemExit, match=says):
        serve.check("", list(answers), 4)
