"""FuseCallback: a Trainer with this callback trains on the ops, and gets the same adapter, checkpoints and files."""

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

import pypeft_fast as pf
from tests.model.zoo import IDS, build

ROWS = [{"input_ids": ids.tolist(), "labels": ids.tolist()} for ids in IDS.repeat(4, 1)]


def trained(folder, config, callbacks, **options):
    torch.manual_seed(0)
    model = peft.get_peft_model(build("llama"), config)
    arguments = TrainingArguments(
        folder,
        max_steps=4,
        save_steps=2,
        learning_rate=0.02,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    trainer = Trainer(model, arguments, train_dataset=ROWS, callbacks=callbacks)
    trainer.train()
    return trainer


CONFIGS = {
    "lora": lambda: peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", CONFIGS)
def test_training_is_the_same_but_fused(method, checkpointing, tmp_path):
    callback = pf.FuseCallback(strict=True)
    plain = trained(tmp_path / "plain", CONFIGS[method](), [], gradient_checkpointing=checkpointing)
    fused = trained(tmp_path / "fused", CONFIGS[method](), [callback], gradient_checkpointing=checkpointing)
    assert len(callback.report.fused) == 4 and not callback.report.left
    assert callback.report.calls() == {"fused": 4 * 4 * (2 if checkpointing else 1)}
    assert fused.state.log_history[-1]["train_loss"] == pytest.approx(plain.state.log_history[-1]["train_loss"], 1e-4)
    names = [sorted(p.name for p in (tmp_path / run / "checkpoint-4").iterdir()) for run in ("plain", "fused")]
    assert names[0] == names[1] and "adapter_model.safetensors" in names[0]
    theirs, ours = (load_file(tmp_path / r / "checkpoint-4/adapter_model.safetensors") for r in ("plain", "fused"))
    start = load_file(tmp_path / "plain" / "checkpoint-2/adapter_model.safetensors")
    assert theirs.keys() == ours.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=2e-3)  # Adam's first steps enlarge the rounding
        assert (value - start[key]).abs().max() > 1e-2


def test_strict_raises_as_training_begins(tmp_path):
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(ValueError, match="1 of the adapter layers cannot be fused: .*embed_tokens"):
        trained(tmp_path, config, [pf.FuseCallback(strict=True)])
    lenient = pf.FuseCallback()
    assert lenient.report is None
    trained(tmp_path, config, [lenient])
    assert len(lenient.report.fused) == 2 and len(lenient.report.left) == 1 and set(lenient.report.calls()) == {"fused"}
