"""bench.plan runs, and writes both measurements of its case."""

import json

import pytest

from bench import plan


@pytest.mark.slow
def test_a_small_case(tmp_path):
    plan.main(["--small", "--output", str(tmp_path)])
    (its,) = json.loads((tmp_path / "plan.json").read_text())["results"]
    assert its["predicted"]["peak"] == pytest.approx(its["measured"]["peak"], rel=0.2)
    assert its["predicted"]["seconds"] > 0 and its["measured"]["seconds"] > 0


def test_there_are_twelve_cases_and_a_wrong_name_is_an_error(capsys):
    assert len(set(map(str, plan.CASES))) == len(plan.CASES) >= 12
    with pytest.raises(SystemExit):
        plan.main(["--only", "nothing"])
    assert "give a part of a name" in capsys.readouterr().err
