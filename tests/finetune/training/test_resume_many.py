"""A run of several adapters that was stopped goes on to the weights of a run that was not."""

import json
import shutil

import pytest
import torch

from pypeft_fast.finetune.data.load import load_data
from pypeft_fast.finetune.errors import UserError
from pypeft_fast.finetune.training import course, many_checkpoints, train_many
from pypeft_fast.finetune.training.hashes import hashes_of
from pypeft_fast.finetune.training.many_folder import begin_many, resumption_many
from pypeft_fast.finetune.training.ready_many import make_ready_many
from tests.finetune.training.test_train_many import TWO, files, settings, weights  # noqa: F401

DROPOUT = dict(dropout=0.3, dtype="float32", learning_rate=0.02)
NAMES = ("desk", "billing", "returns")  # 12, 4 and 6 steps, a checkpoint every 2 steps


class Killed(BaseException):
    """What no code catches, as after SIGKILL."""


@pytest.fixture(scope="module")
def run(settings):  # noqa: F811
    """run(folder, resume=False, stop=None, ...) -> the metrics; stop: the step in which the run is killed."""

    def go(folder, names=NAMES, resume=False, stop=None, **options):
        of = {name: settings(name, **DROPOUT | options) for name in names}
        saved = None
        if resume:
            saved, _ = resumption_many(folder, of, read(of))
        else:
            begin_many(made(folder, names), of, {}, read(of))
        ready = make_ready_many(of, {name: load_data(its.data) for name, its in of.items()}, {})
        with pytest.MonkeyPatch.context() as patched:
            real, left = train_many.backward, iter(range(stop or 10**9))

            def backward(*arguments):
                if next(left, None) is None:
                    raise Killed
                return real(*arguments)

            patched.setattr(train_many, "backward", backward)
            metrics = train_many.fine_tune_many(ready, folder, saved=saved)
        check_model(ready, folder)
        return metrics

    return go


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """(the folder, the metrics) of a run that was not stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder)


def check_model(ready, folder):
    """The model has the weights in the files, also of adapters that had ended before the run went on."""
    for name, its in ready.runs.items():
        written = weights(folder / name)
        for key, parameter in its.parameters.items():
            assert torch.equal(parameter, written[key.replace(f".{its.adapter}", "")]), (name, key)


def read(settings):  # noqa: F811
    return {name: hashes_of(its, load_data(its.data), None) for name, its in settings.items()}


def made(folder, names):
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
    return folder


def stopped(run, folder, stop, **options):
    with pytest.raises(Killed):
        run(folder, stop=stop, **options)
    torch.manual_seed(999)  # another process has other random numbers


def check_same(folder, other, found, expected):
    for name in expected:
        ours, theirs = weights(folder / name), weights(other / name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours), name
        for key in ("loss_history", "steps", "best_step", "stopped_early", "eval_loss_before", "eval_loss_after"):
            assert found[name][key] == expected[name][key], (name, key)
        assert found[name]["losses"] == expected[name]["losses"]
        metrics = json.loads((folder / name / "metrics.json").read_text())
        assert metrics["loss_history"] == json.loads((other / name / "metrics.json").read_text())["loss_history"]


@pytest.mark.parametrize("stop", [3, 5, 6, 11])
def test_a_killed_run_goes_on_to_the_same_weights(run, whole, tmp_path, stop):
    """With dropout, after none, one or two of the adapters have ended; the third has one more epoch to begin."""
    other, expected = whole
    assert {name: its["steps"] for name, its in expected.items()} == {"desk": 12, "billing": 4, "returns": 6}
    stopped(run, tmp_path / "killed", stop)
    found = run(tmp_path / "killed", resume=True)
    check_same(tmp_path / "killed", other, found, expected)
    assert (tmp_path / "killed/loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("options", [dict(patience=1, learning_rate=0.5, epochs=5), dict(gradient_accumulation=2)])
def test_early_stopping_and_accumulation_go_on(run, tmp_path, options):
    expected = run(tmp_path / "whole", TWO, **options)
    stopped(run, tmp_path / "killed", 3, names=TWO, **options)
    check_same(tmp_path / "killed", tmp_path / "whole", run(tmp_path / "killed", TWO, True, **options), expected)


def test_a_run_is_killed_twice_and_as_its_last_checkpoint_is_written(run, whole, tmp_path, monkeypatch):
    stopped(run, tmp_path / "killed", 3)
    folder = tmp_path / "killed"
    with monkeypatch.context() as patched:

        def killed(*arguments):
            raise Killed

        patched.setattr(torch, "save", killed)
        with pytest.raises(Killed):
            run(folder, resume=True)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-2"]
    check_same(folder, whole[0], run(folder, resume=True), whole[1])


def planted_rng(monkeypatch):
    monkeypatch.setattr(many_checkpoints, "restore_generators", lambda generators: None)


def planted_order(monkeypatch):
    monkeypatch.setattr(course.Course, "next_batches", unskipped(course.Course.next_batches))


def unskipped(real):
    """The examples begin again: what restore has read is read again."""

    def next_batches(self):
        step = real(self)
        if getattr(self, "_replayed", None) is None:
            self._replayed = step
        return self._replayed if self.trainer.state.global_step else step

    return next_batches


def planted_optimizer(monkeypatch):
    real = course.Course.restore

    def restore(self, numbers, tensors):
        real(self, numbers, {**tensors, "optimizer": self.trainer.optimizer.state_dict()})

    monkeypatch.setattr(course.Course, "restore", restore)


@pytest.mark.parametrize("plant", [planted_rng, planted_order, planted_optimizer])
def test_a_planted_fault_is_found(run, whole, tmp_path, monkeypatch, plant):
    stopped(run, tmp_path / "killed", 5)
    plant(monkeypatch)
    found = run(tmp_path / "killed", resume=True)
    with pytest.raises(AssertionError):
        check_same(tmp_path / "killed", whole[0], found, whole[1])


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "tensors cut": lambda folder: cut(folder / "adapters.pt"),
    "tensors flipped": lambda folder: flip(folder / "adapters.pt"),
    "no tensors": lambda folder: (folder / "adapters.pt").unlink(),
    "numbers cut": lambda folder: cut(folder / "adapters.json"),
    "numbers of others": lambda f: (f / "adapters.json").write_text('{"before": {}, "adapters": {}, "ended": []}'),
    "no numbers": lambda folder: (folder / "adapters.json").write_text("{}"),
    "an adapter that had ended is gone": lambda folder: shutil.rmtree(folder.parent / "billing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_not_gone_on_from(run, whole, settings, tmp_path, kind):  # noqa: F811
    folder = tmp_path / "killed"
    stopped(run, folder, 5)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    of = {name: settings(name, **DROPOUT) for name in NAMES}
    kept = (folder / "billing/finetune.json").read_text()
    DAMAGE[kind](folder / "checkpoint-4")
    (folder / "billing").mkdir(exist_ok=True)
    (folder / "billing/finetune.json").write_text(kept)
    saved, damaged = resumption_many(folder, of, read(of))
    assert saved.step == 2 and len(damaged) == 1 and damaged[0].startswith("checkpoint-4 is damaged (")
    if kind == "tensors cut":
        check_same(folder, whole[0], run(folder, resume=True), whole[1])
    else:
        cut(folder / "checkpoint-2/adapters.pt")
        with pytest.raises(UserError, match="no whole checkpoint is left; start again with `overwrite`"):
            resumption_many(folder, of, read(of))


def test_what_there_is_to_go_on_with(run, settings, tmp_path):  # noqa: F811
    folder, of = tmp_path / "a", {name: settings(name, **DROPOUT) for name in NAMES}
    with pytest.raises(UserError, match="no complete checkpoint in"):
        resumption_many(folder, of, read(of))
    stopped(run, folder, 1)
    with pytest.raises(UserError, match="no complete checkpoint in"):
        resumption_many(folder, of, read(of))
    stopped(run, folder, 3)
    with pytest.raises(UserError, match="`learning_rate` of billing was 0.02 in the run to go on with and is 0.5 now"):
        resumption_many(folder, of | {"billing": settings("billing", **DROPOUT | dict(learning_rate=0.5))}, read(of))
    with pytest.raises(UserError, match="has the adapters billing, desk, returns, and now there are billing, desk$"):
        resumption_many(folder, {name: of[name] for name in TWO}, read(of))
    run(folder, resume=True)
    assert resumption_many(folder, of, read(of)) == (None, [])
    (folder / "finetune.json").write_text(json.dumps({"adapters": 1}))
    with pytest.raises(UserError, match="is not of a run of several adapters"):
        resumption_many(folder, of, read(of))
