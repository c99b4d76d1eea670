"""The recommendation, on synthetic costs, energies and trials."""

import pytest

from pypeft_fast.finetune.advise.evidence import ALL, EQUAL, FINDINGS
from pypeft_fast.finetune.advise.rule import Compared, Option, choose, runner_up

ENERGY = {"q,v": 0.3, "attention": 0.4, "mlp": 0.6, "all-linear": 1.0}
PARAMETERS = {"q,v": 10, "attention": 30, "mlp": 50, "all-linear": 80}


def options(energy=None, fits=None, error=0.01):
    energy, fits = ENERGY | (energy or {}), fits or {}
    return [Option(name, PARAMETERS[name], fits.get(name, "yes"), energy[name], error) for name in ENERGY]


def trial(best="attention", second="all-linear", lead=0.1, error=0.01, examples=7):
    return Compared(best, second, lead, error, examples, 40)


def test_all_linear_is_the_start():
    choice = choose(options(), hybrid=False)
    assert choice.targets == "all-linear" and not choice.checkpointing
    count = {verdict: sum(its.verdict == verdict for its in FINDINGS) for verdict in (ALL, EQUAL)}
    assert count == {ALL: 3, EQUAL: 2}
    assert "Of 5 comparisons on transformers, 3 found" in choice.why[0] and "2 found no clear" in choice.why[0]
    assert "less than 90 % of the gradient energy" in choice.why[1]
    assert any("No candidate was trained" in line for line in choice.doubts)


@pytest.mark.parametrize(("energy", "error", "chosen"), [(0.93, 0.01, "mlp"), (0.93, 0.02, "all-linear"),
                                                         (0.9, None, "mlp"), (0.89, 0.0, "all-linear")])  # fmt: skip
def test_mlp_replaces_all_linear_with_enough_energy(energy, error, chosen):
    assert choose(options({"mlp": energy}, error=error), hybrid=False).targets == chosen


def test_the_reason_against_mlp_is_true():
    assert "less than 90 %" in choose(options({"mlp": 0.6}), hybrid=False).why[1]
    why = choose(options({"mlp": 0.92}, error=0.02), hybrid=False).why[1]
    assert "have 92 % of the gradient energy" in why and "less 2 standard errors it is below 90 %" in why
    others = [its for its in options() if its.targets != "mlp"]
    assert "not among the candidates" in choose(others, hybrid=False).why[1]
    assert "does not fit" in choose(options({"mlp": 0.95}, fits={"mlp": "no"}), hybrid=False).why[1]


def test_attention_does_not_replace_all_linear_by_its_energy():
    choice = choose(options({"attention": 0.97, "mlp": 0.03}), hybrid=False)
    assert choice.targets == "all-linear"
    assert any("attention has 97 % of the gradient energy and mlp 3 %" in line for line in choice.doubts)
    assert not any("while the larger studies" in line for line in choose(options(), hybrid=False).doubts)


def test_a_candidate_that_does_not_fit_is_not_recommended():
    choice = choose(options(fits={"all-linear": "no"}), hybrid=False)
    assert choice.targets == "mlp" and "all-linear does not fit" in choice.why[0]
    choice = choose(options(fits={"all-linear": "no", "mlp": "no"}), hybrid=False)
    assert choice.targets == "attention"


def test_gradient_checkpointing_is_part_of_the_recommendation():
    choice = choose(options(fits=dict.fromkeys(ENERGY, "checkpointed")), hybrid=False)
    assert choice.targets == "all-linear" and choice.checkpointing
    assert "fits with --gradient-checkpointing" in choice.why[-1]


def test_in_a_hybrid_attention_is_the_start():
    choice = choose(options({"mlp": 0.95}), hybrid=True)
    assert choice.targets == "attention" and "recurrent layers" in choice.why[0]
    assert choose(options()[3:], hybrid=True).targets == "all-linear"  # no attention among the candidates


def test_a_clear_trial_decides():
    choice = choose(options(), False, trial(lead=0.05, error=0.02))
    assert choice.targets == "attention"
    assert "0.050 lower than that of all-linear (standard error 0.020, 7 examples)" in choice.why[-1]
    assert any("one seed" in line for line in choice.doubts)
    assert "all-linear trains 2.7 times as many parameters as attention" in choice.doubts[-1]


@pytest.mark.parametrize("unclear", [dict(lead=0.039, error=0.02), dict(examples=4), dict(error=None, examples=1)])
def test_a_trial_within_noise_changes_nothing(unclear):
    choice = choose(options(), False, trial(**unclear))
    assert choice.targets == "all-linear"
    said = "cannot tell attention from all-linear" if "lead" in unclear else "decides nothing"
    assert any(said in line for line in choice.doubts) and not any("No candidate was" in d for d in choice.doubts)


def test_the_second_of_a_trial_has_the_most_energy_of_the_rest():
    assert runner_up(options(), "all-linear") == "mlp"
    assert runner_up(options({"attention": 0.7}), "all-linear") == "attention"
    assert runner_up(options(fits={"all-linear": "no"}), "mlp") == "attention"
