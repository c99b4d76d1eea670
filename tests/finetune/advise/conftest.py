"""An advice for the tiny Llama and the dialogues, with a trial of two steps."""

import pytest

from pypeft_fast.finetune.advise.make import Wanted, make_advice
from pypeft_fast.finetune.data.load import load_data
from pypeft_fast.finetune.plan.candidates import GROUPS
from pypeft_fast.finetune.training.settings import Settings


@pytest.fixture(scope="session")
def wanted(tiny_model, dialogues):
    settings = Settings(str(tiny_model), str(dialogues), rank=4, alpha=8, eval_fraction=0.3)
    return Wanted(settings, batches=3, groups=GROUPS, room=2**33, on_gpu=False, timed=False, steps=2)


@pytest.fixture(scope="session")
def advice(wanted, dialogues):
    return make_advice(wanted, load_data(str(dialogues)), None, lambda text: None)
