"""Fine-tuning in float32 with p = 0 has the same losses as a run with PEFT, for 20 steps."""

import peft
import pytest

import pypeft_fast
from pypeft_fast.finetune import base_models
from pypeft_fast.finetune.adapters.methods import method_config
from pypeft_fast.finetune.data.load import load_data
from pypeft_fast.finetune.data.tokens import Collator
from pypeft_fast.finetune.errors import UserError
from pypeft_fast.finetune.training.prepare import prepare
from pypeft_fast.finetune.training.settings import Settings
from pypeft_fast.finetune.training.train import make_trainer

try:
    base_models.smollm2_gguf()
    REASON = ""
except UserError as error:
    REASON = str(error)


def losses(library, start, settings, output):
    """The losses of all steps of a run that starts from the adapter in the folder `start`."""
    base, tokenizer = base_models.load_base(settings.model)
    model = library.PeftModel.from_pretrained(base, start, is_trainable=True)
    data = prepare(tokenizer, load_data(settings.data), settings)
    trainer = make_trainer(model, data, Collator.of(tokenizer), settings, output)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def follows(settings, tmp_path):
    import transformers

    transformers.set_seed(0)
    base, _ = base_models.load_base(settings.model)
    peft.get_peft_model(base, method_config(peft, settings)).save_pretrained(tmp_path / "start")
    theirs = losses(peft, tmp_path / "start", settings, tmp_path / "peft")
    ours = losses(pypeft_fast, tmp_path / "start", settings, tmp_path / "ours")
    assert len(ours) == len(theirs) == 20
    assert max(theirs) - min(theirs) > 0.3  # the loss changes, so the comparison is not trivial
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-4


@pytest.mark.parametrize("gradient_accumulation", [1, 2])
def test_a_tiny_llama(tiny_model, dialogues, tmp_path, gradient_accumulation):
    common = {"dropout": 0.0, "max_steps": 20, "learning_rate": 0.01, "save_every": 0, "rank": 4, "batch_size": 4}
    common["gradient_accumulation"] = gradient_accumulation
    follows(Settings(str(tiny_model), str(dialogues), **common), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(bool(REASON), reason=REASON)
def test_smollm2(tmp_path):
    common = {"dropout": 0.0, "max_steps": 20, "batch_size": 4, "save_every": 0, "eval_fraction": 0.2}
    follows(Settings("smollm2", "chatterbot:tech_support", **common), tmp_path)
