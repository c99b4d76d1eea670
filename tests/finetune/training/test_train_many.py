"""Several adapters in one run: each has the losses, the evaluations and the weights of a run of its own."""

import pytest
import torch
from safetensors.torch import load_file

from pypeft_fast.finetune.data.load import load_data
from pypeft_fast.finetune.errors import UserError
from pypeft_fast.finetune.training import together
from pypeft_fast.finetune.training.course import Course
from pypeft_fast.finetune.training.ready import make_ready
from pypeft_fast.finetune.training.ready_many import make_ready_many
from pypeft_fast.finetune.training.settings import Settings
from pypeft_fast.finetune.training.train import fine_tune
from pypeft_fast.finetune.training.train_many import fine_tune_many

# In float64 rounding does not grow over the steps, as AdamW lets it grow where a gradient is about 0.
COMMON = dict(dropout=0.0, rank=4, batch_size=3, epochs=2, learning_rate=0.05, save_every=2, eval_fraction=0.2)
COMMON |= dict(dtype="float64")
# {name: its lines of the dialogues}: of several lengths, so that they end apart.
LINES = {"desk": slice(0, 20), "billing": slice(5, 12), "returns": slice(0, 20, 2)}
TWO = ("desk", "billing")


@pytest.fixture(scope="module")
def files(dialogues, tmp_path_factory):
    lines, found = dialogues.read_text().splitlines(keepends=True), {}
    for name, part in LINES.items():
        found[name] = tmp_path_factory.mktemp("data") / f"{name}.jsonl"
        found[name].write_text("".join(lines[part]))
    return found


@pytest.fixture(scope="module")
def settings(tiny_model, files):
    return lambda name, **options: Settings(str(tiny_model), str(files[name]), **COMMON | options)


@pytest.fixture(scope="module")
def alone(settings, tmp_path_factory):
    """alone(name, **options) -> (the metrics of a run of its own, its folder); each run is made once."""
    known = {}

    def run(name, **options):
        key = name, *sorted(options.items())
        if key not in known:
            its, folder = settings(name, **options), tmp_path_factory.mktemp("alone") / name
            ready = make_ready(its, load_data(its.data))
            known[key] = fine_tune(ready.model, ready.data, ready.collator, its, folder, None), folder
        return known[key]

    return run


@pytest.fixture
def many(settings, tmp_path):
    """many(names, **options) -> the metrics of one run of them all, in tmp_path."""

    def run(names, **options):
        of = {name: settings(name, **options) for name in names}
        ready = make_ready_many(of, {name: load_data(its.data) for name, its in of.items()}, {})
        return fine_tune_many(ready, tmp_path)

    return run


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def check_equal(found, folder, expected, its_folder, tolerance=1e-5):
    """The metrics and the files of two runs."""
    for kind in ("train", "held_out"):
        ours, theirs = (torch.tensor(metrics["loss_history"][kind]) for metrics in (found, expected))
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    for key in ("steps", "best_step", "stopped_early", "train_examples", "settings"):
        assert found[key] == expected[key], key
    for key in ("trainable_parameters", "total_parameters"):
        assert found[key] == expected[key], key
    ours, theirs = weights(folder), weights(its_folder)
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("names", [TWO, ("billing", "returns", "desk"), ("returns",)])
def test_each_is_what_a_run_of_its_own_makes(many, alone, tmp_path, names):
    found = many(names)
    for name in names:
        check_equal(found[name], tmp_path / name, *alone(name))
        assert max(found[name]["losses"]) > min(found[name]["losses"]) + 0.2  # it learns: equality is no accident
    assert len({metrics["steps"] for metrics in found.values()}) == len(names)  # they ended apart


def test_in_float32(many, alone, tmp_path):
    options = dict(dtype="float32", learning_rate=1e-3)
    found = many(TWO, **options)
    for name in TWO:
        check_equal(found[name], tmp_path / name, *alone(name, **options), tolerance=2e-5)


@pytest.mark.parametrize(
    "options",
    [
        dict(gradient_accumulation=2),
        dict(gradient_checkpointing=True),
        dict(patience=1, learning_rate=0.5, epochs=5),
        dict(schedule="linear", warmup=2, weight_decay=0.3, max_grad_norm=0.01, optimizer="adamw_torch"),
        dict(packing=True, max_length=40, epochs=4),
        dict(schedule="inverse_sqrt", max_grad_norm=0, optimizer="sgd"),
        dict(save_every=0, max_steps=4),
        dict(eval_fraction=0, max_steps=3),
        dict(method="ia3", rank=None, dropout=None, target_modules=None),
        dict(method="bitfit", rank=None, dropout=None, target_modules=None),
        dict(method="bottleneck", rank=None, target_modules=None, reduction_factor=4),
    ],
    ids=lambda options: ",".join(options),
)
def test_with_other_options(many, alone, tmp_path, options):
    found = many(TWO, **options)
    for name in TWO:
        check_equal(found[name], tmp_path / name, *alone(name, **options))
    if "patience" in options:
        assert any(metrics["stopped_early"] for metrics in found.values())
        assert any(metrics["best_step"] < metrics["steps"] for metrics in found.values())


def neighbours_names(monkeypatch):
    real, swapped = together.names_of_rows, {"adapter0": "adapter1", "adapter1": "adapter0"}
    monkeypatch.setattr(together, "names_of_rows", lambda parts: [swapped[name] for name in real(parts)])


def one_row_off(monkeypatch):
    real = together.names_of_rows
    monkeypatch.setattr(together, "names_of_rows", lambda parts: [*real(parts)[1:], real(parts)[0]])


def one_clip(monkeypatch):
    """The norm of all gradients decides how much each adapter's are clipped."""

    def shared(parameters, most):
        every = [p for course in courses for p in course.run.parameters.values()]
        norm = torch.nn.utils.get_total_norm([p.grad for p in every if p.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(list(parameters), most, norm)

    courses, real = [], Course.__init__
    monkeypatch.setattr(Course, "__init__", lambda self, *args: (real(self, *args), courses.append(self))[0])
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", shared)


def neighbours_tokens(monkeypatch):
    """The loss is the mean over the tokens of the other adapter."""
    real = together.backward

    def swapped(model, collator, steps):
        tokens = [step.tokens for step in reversed(steps)]
        steps = [together.Step(step.adapter, step.batches, n) for step, n in zip(steps, tokens, strict=True)]
        return real(model, collator, steps)

    monkeypatch.setattr("pypeft_fast.finetune.training.train_many.backward", swapped)


def never_the_best(monkeypatch):
    monkeypatch.setattr(Course, "take_best", lambda self: None)


@pytest.mark.parametrize("plant", [neighbours_names, one_row_off, one_clip, neighbours_tokens, never_the_best])
def test_a_planted_fault_is_found(many, alone, tmp_path, monkeypatch, plant):
    options = dict(learning_rate=0.5, epochs=5, patience=1) if plant is never_the_best else {}
    expected = {name: alone(name, **options) for name in TWO}
    plant(monkeypatch)
    found = many(TWO, **options)
    with pytest.raises(AssertionError):
        for name in TWO:
            check_equal(found[name], tmp_path / name, *expected[name])


def test_dropout_drops(many, alone):
    found = many(("billing",), dropout=0.5)["billing"]
    assert found["losses"][0] == pytest.approx(alone("billing")[0]["losses"][0])  # B is 0
    assert abs(found["losses"][-1] - alone("billing")[0]["losses"][-1]) > 1e-4


def test_one_that_diverges_is_named(settings, tmp_path):
    of = {"desk": settings("desk"), "billing": settings("billing", learning_rate=1e300)}
    ready = make_ready_many(of, {name: load_data(its.data) for name, its in of.items()}, {})
    with pytest.raises(UserError, match=r"billing: the loss .* is nan: training has diverged"):
        fine_tune_many(ready, tmp_path)
    assert not (tmp_path / "billing" / "metrics.json").exists()


@pytest.mark.parametrize("method", ["dora", "prompt", "prefix"])
def test_a_method_that_a_batch_cannot_mix(settings, method):
    with pytest.raises(UserError, match=f"`method` {method} trains one adapter in a run.* lora, ia3, bitfit, bottlen"):
        make_ready_many({"desk": settings("desk", method=method)}, {"desk": []}, {})


def test_a_model_whose_rows_are_not_the_batch_s(settings, tmp_path):
    of = {"desk": settings("desk")}
    ready = make_ready_many(of, {"desk": load_data(of["desk"].data)}, {})
    ready.model.get_base_model().config.model_type = "xlnet"  # time-major
    with pytest.raises(UserError, match="this model cannot train several adapters in one batch; .* time-major"):
        fine_tune_many(ready, tmp_path)
