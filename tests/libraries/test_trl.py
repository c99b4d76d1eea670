"""The trainers of TRL run on our models without changes, on fused layers, with the same losses as PEFT."""

import peft
import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

import pypeft_fast as pf
from tests.finetune.conftest import make_tokenizer

COMMON = dict(
    max_steps=3, per_device_train_batch_size=2, learning_rate=1e-2, report_to=[], use_cpu=True, bf16=False,
    disable_tqdm=True, logging_steps=1, save_strategy="no", gradient_checkpointing=False,
)  # fmt: skip
TEXTS = ["Hello there, how are you?", "I am fine, thank you.", "My computer is slow today.", "Restart it, please."]


def model(library):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(make_tokenizer()), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, initializer_range=0.3,
    )  # fmt: skip
    lora = library.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    return library.get_peft_model(LlamaForCausalLM(config), lora)


def tokenizer():
    made = make_tokenizer()
    made.pad_token = made.pad_token or made.eos_token
    return made


def sft(wrapped, folder):
    options = SFTConfig(folder, max_length=32, **COMMON)
    return SFTTrainer(wrapped, options, train_dataset=Dataset.from_dict({"text": TEXTS}), processing_class=tokenizer())


def dpo(wrapped, folder):
    rows = {"prompt": TEXTS[:2], "chosen": TEXTS[2:], "rejected": TEXTS[:2]}
    return DPOTrainer(
        wrapped, args=DPOConfig(folder, max_length=32, **COMMON), train_dataset=Dataset.from_dict(rows),
        processing_class=tokenizer(),
    )  # fmt: skip


def grpo(wrapped, folder):
    options = GRPOConfig(folder, num_generations=2, max_completion_length=4, temperature=1.0, **COMMON)
    reward = lambda completions, **kwargs: [float(len(text) % 3) for text in completions]  # noqa: E731
    return GRPOTrainer(
        wrapped, reward_funcs=reward, args=options, train_dataset=Dataset.from_dict({"prompt": TEXTS}),
        processing_class=tokenizer(),
    )  # fmt: skip


NOT_VALUES = ("time", "runtime", "per_second")


@pytest.mark.parametrize("make", [sft, dpo, grpo])
def test_what_is_logged_and_learned_is_pefts_and_the_layers_are_fused(make, tmp_path):
    logs, learned = {}, {}
    for library in (peft, pf):
        wrapped = model(library)
        before = {name: p.clone() for name, p in wrapped.named_parameters() if p.requires_grad}
        torch.manual_seed(1)
        trainer = make(wrapped, str(tmp_path / library.__name__))
        trainer.train()
        logs[library] = [
            {k: float(v) for k, v in entry.items() if not any(word in k for word in NOT_VALUES)}
            for entry in trainer.state.log_history
        ]
        trained = {name: p for name, p in trainer.model.named_parameters() if name in before}
        assert any(not torch.equal(p, before[name]) for name, p in trained.items())
        learned[library] = trained
    assert isinstance(trainer.model, pf.PeftModel)
    report = pf.fuse(trainer.model)
    assert len(report.fused) == 14 and not report.left
    assert report.calls()["fused"] >= 14 * 3 and set(report.calls()) == {"fused"}
    assert len(logs[pf]) == len(logs[peft]) and any("loss" in entry for entry in logs[pf])
    for ours, theirs in zip(logs[pf], logs[peft], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    for name, value in learned[peft].items():
        torch.testing.assert_close(learned[pf][name], value, rtol=1e-3, atol=1e-4)
