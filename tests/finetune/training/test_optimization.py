"""What Trainer makes of the settings: the learning rate of each step, the optimizer, weight decay and clipping."""

import math

import pytest
import torch

from pypeft_fast.finetune.data.load import load_data
from pypeft_fast.finetune.training.ready import make_ready
from pypeft_fast.finetune.training.settings import OPTIMIZERS, SCHEDULES, Settings
from pypeft_fast.finetune.training.train import fine_tune, make_trainer

STEPS, WARMUP = 20, 4
# {schedule: the learning rate of a step after the warm-up, relative to the largest}; at: the part of the run since then
AFTER = {
    "cosine": lambda step, at: 0.5 * (1 + math.cos(math.pi * at)),
    "linear": lambda step, at: 1 - at,
    "constant": lambda step, at: 1,
    "constant_with_warmup": lambda step, at: 1,
    "cosine_with_restarts": lambda step, at: 0.5 * (1 + math.cos(math.pi * at)),  # one cycle
    "polynomial": lambda step, at: 1 - at,  # of degree 1, down to 1e-7
    "inverse_sqrt": lambda step, at: math.sqrt(WARMUP / step),
}


@pytest.fixture(scope="module")
def ready(tiny_model, dialogues):
    settings = Settings(str(tiny_model), str(dialogues), rank=2)
    return make_ready(settings, load_data(settings.data))


@pytest.fixture
def trainer(ready, tiny_model, dialogues, tmp_path):
    def make(**options):
        settings = Settings(str(tiny_model), str(dialogues), rank=2, max_steps=STEPS, learning_rate=0.5, **options)
        made = make_trainer(ready.model, ready.data, ready.collator, settings, tmp_path)
        made.create_optimizer_and_scheduler(STEPS)
        return made

    return make


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_learning_rate_of_each_step(trainer, schedule):
    warmup = 0 if schedule == "constant" else WARMUP
    made, rates = trainer(schedule=schedule, warmup=warmup), []
    for _ in range(STEPS):
        rates.append(made.lr_scheduler.get_last_lr()[0])
        made.optimizer.step()
        made.lr_scheduler.step()
    rise = [0.5 * step / WARMUP for step in range(warmup)]
    rest = [0.5 * AFTER[schedule](step, (step - warmup) / (STEPS - warmup)) for step in range(warmup, STEPS)]
    assert rates == pytest.approx(rise + rest, abs=2e-7)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_optimizer_and_its_weight_decay(trainer, optimizer):
    usual, its = trainer().optimizer, trainer(optimizer=optimizer, weight_decay=0.25).optimizer
    assert (type(usual).__name__, usual.param_groups[0]["fused"]) == ("AdamW", True)
    assert all(group["weight_decay"] == 0 for group in usual.param_groups)
    names = {"adafactor": "Adafactor", "adagrad": "Adagrad", "rmsprop": "RMSprop", "sgd": "SGD"}
    assert type(its).__name__ == names.get(optimizer, "AdamW")
    decayed = [group["weight_decay"] for group in its.param_groups if group["params"]]
    assert decayed == [0.25]
    if optimizer == "adamw_torch":
        assert not its.param_groups[0].get("fused")


def test_the_first_step_of_sgd_is_as_long_as_the_clipped_gradient(ready, tiny_model, dialogues, tmp_path):
    """SGD moves the weights by the learning rate times the gradient, whose norm is at most max_grad_norm."""
    common = dict(rank=2, max_steps=1, save_every=0, learning_rate=0.5, optimizer="sgd", schedule="constant", warmup=0)
    lengths, known = [], {n: p.detach().clone() for n, p in ready.model.named_parameters() if p.requires_grad}
    for norm in (0.25, 0):
        with torch.no_grad():
            for name, value in known.items():
                ready.model.get_parameter(name).copy_(value)
        settings = Settings(str(tiny_model), str(dialogues), max_grad_norm=norm, **common)
        fine_tune(ready.model, ready.data, ready.collator, settings, tmp_path / str(norm), None)
        moved = [ready.model.get_parameter(name).detach() - value for name, value in known.items()]
        lengths.append(float(torch.cat([m.flatten() for m in moved]).norm()))
    assert lengths[0] == pytest.approx(0.5 * 0.25, rel=1e-3)
    assert lengths[1] > 2 * lengths[0]
