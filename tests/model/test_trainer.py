"""AdapterTrainer: what it saves, what it goes on from, and that any other model is left to Trainer."""

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainingArguments

import pypeft_fast as pf
from tests.cli.conftest import make_tokenizer
from tests.model.zoo import IDS, assert_same, build, liven, logits

ROWS = [{"input_ids": ids.tolist(), "labels": ids.tolist()} for ids in IDS.repeat(4, 1)]
STATE = {"optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json", "training_args.bin"}


def trainer(folder, library=pf, second=False, model=None, **options):
    torch.manual_seed(0)
    config = library.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", lora_dropout=0.1)
    if model is None:
        model = library.get_peft_model(build("llama"), config)
    if second:
        model.add_adapter("second", library.LoraConfig(r=2, target_modules=["k_proj"]))
    arguments = TrainingArguments(
        folder, **dict(max_steps=4, save_steps=2, learning_rate=0.02, report_to="none", use_cpu=True, disable_tqdm=True)
        | options,
    )  # fmt: skip
    return pf.AdapterTrainer(model, arguments, train_dataset=ROWS, eval_dataset=ROWS[:3])


def names(folder):
    return {p.name for p in folder.iterdir()}


@pytest.mark.parametrize("second", [False, True])
def test_checkpoints_are_adapters_and_a_run_goes_on_from_them(second, tmp_path):
    straight = trainer(tmp_path, second=second)
    straight.processing_class = make_tokenizer()
    straight.train()
    files = {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    files |= STATE | {"chat_template.jinja"} | ({"second"} if second else set())
    assert names(tmp_path / "checkpoint-2") == files
    saved = load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors")
    assert len(saved) == 4 and all(".lora_" in key for key in saved)

    resumed = trainer(tmp_path, second=second)
    if second:  # to be read from the checkpoint too
        liven(resumed.model.base_model, 5)
        resumed.model.set_adapter("second")
        liven(resumed.model, 5, "second")
        resumed.model.set_adapter("default")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 4
    for (name, mine), (_, theirs) in zip(
        resumed.model.named_parameters(), straight.model.named_parameters(), strict=True
    ):
        assert torch.equal(mine, theirs), name

    resumed.save_model(str(tmp_path / "final"))
    assert "model.safetensors" not in names(tmp_path / "final")
    reloaded = peft.PeftModel.from_pretrained(build("llama"), tmp_path / "final")
    assert_same(logits(reloaded), logits(resumed.model.eval()))


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path):
    class Diverge(TrainerCallback):
        """Spoils the adapter after the second step, so that the first checkpoint is the better one."""

        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:
                for parameter in filter(lambda p: p.requires_grad, model.parameters()):
                    parameter.data.normal_(std=3)

    best = trainer(tmp_path, load_best_model_at_end=True, eval_strategy="steps", eval_steps=2, learning_rate=1e-3)
    best.add_callback(Diverge())
    best.train()
    assert best.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    expected = pf.PeftModel.from_pretrained(build("llama"), tmp_path / "checkpoint-2")
    assert torch.equal(logits(best.model.eval()), logits(expected))


def test_a_checkpoint_of_the_whole_model_is_refused(tmp_path):
    from transformers import Trainer

    first = trainer(tmp_path, max_steps=2)
    Trainer(first.model, first.args, train_dataset=ROWS).train()
    assert "model.safetensors" in names(tmp_path / "checkpoint-2")
    with pytest.raises(FileNotFoundError, match="has no adapter_config.json"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("kind", ["peft", "base"])
def test_any_other_model_is_left_to_trainer(kind, tmp_path):
    options = dict(load_best_model_at_end=True, eval_strategy="steps", eval_steps=2)
    model = build("llama") if kind == "base" else None
    other = trainer(tmp_path, peft, model=model, **options)
    other.train()
    file = "model.safetensors" if kind == "base" else "adapter_model.safetensors"
    assert file in names(tmp_path / "checkpoint-2")
    resumed = trainer(tmp_path, peft, model=build("llama") if kind == "base" else None)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 4


def test_sharded_parameters_are_refused(tmp_path, monkeypatch):
    from transformers import Trainer

    real = Trainer.create_accelerator_and_postprocess

    def sharded(self):
        real(self)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", sharded)
    with pytest.raises(ValueError, match="use neither FSDP nor DeepSpeed"):
        trainer(tmp_path)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="module 'pypeft_fast' has no attribute 'NoTrainer'"):
        _ = pf.NoTrainer
