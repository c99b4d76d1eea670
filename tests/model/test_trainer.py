"""transformers.Trainer with our models: checkpoints, resuming, and the columns that reach the model."""

import peft
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

import pypeft_fast as pf
from tests.finetune.conftest import make_tokenizer
from tests.model.zoo import IDS, TARGETS, assert_fused, assert_same, build, liven, logits, tied

pytestmark = pytest.mark.cpu  # use_cpu moves the model to the CPU, but a run on a GPU makes tensors there
ROWS = [{"input_ids": ids.tolist(), "labels": ids.tolist()} for ids in IDS.repeat(4, 1)]
STATE = {"optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json", "training_args.bin"}


def arguments(folder, **options):
    usual = dict(max_steps=4, learning_rate=0.02, report_to="none", use_cpu=True, disable_tqdm=True)
    return TrainingArguments(folder, **usual | options)


def trainer(folder, second=False, base=None, **options):
    torch.manual_seed(0)
    config = pf.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", lora_dropout=0.1)
    model = pf.get_peft_model(base or build("llama"), config)
    if second:
        model.add_adapter("second", pf.LoraConfig(r=2, target_modules=["k_proj"], task_type="CAUSAL_LM"))
    options = dict(save_steps=2) | options
    return Trainer(model, arguments(folder, **options), train_dataset=ROWS, eval_dataset=ROWS[:3])


def names(folder):
    return {p.name for p in folder.iterdir()}


@pytest.mark.parametrize("base", [None, tied], ids=["apart", "tied"])
def test_checkpoints_are_adapters_and_a_run_goes_on_from_them(base, tmp_path):
    straight = trainer(tmp_path, base=base and base())
    straight.processing_class = make_tokenizer()
    straight.train()
    assert_fused(straight.model)
    files = {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert files <= names(tmp_path / "checkpoint-2") <= files | STATE | {"chat_template.jinja", "README.md"}
    saved = load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors")
    assert len(saved) == 2 * len(pf.fuse(straight.model).fused) and all(".lora_" in key for key in saved)

    resumed = trainer(tmp_path, base=base and base())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 4
    for (name, mine), theirs in zip(resumed.model.named_parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(mine, theirs), name

    resumed.save_model(str(tmp_path / "final"))
    assert "model.safetensors" not in names(tmp_path / "final")
    reloaded = peft.PeftModel.from_pretrained(base() if base else build("llama"), tmp_path / "final")
    assert_same(logits(reloaded.eval()), logits(resumed.model.eval()))


def test_a_run_with_several_adapters_goes_on_from_its_checkpoint(tmp_path):
    straight = trainer(tmp_path, second=True)
    straight.train()
    assert "second" in names(tmp_path / "checkpoint-2")
    resumed = trainer(tmp_path, second=True)
    liven(resumed.model, 5)  # the checkpoint must replace these values
    resumed.model.set_adapter("second")
    liven(resumed.model, 5, "second")
    resumed.model.set_adapter("default")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for (name, mine), theirs in zip(resumed.model.named_parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path):
    class Diverge(TrainerCallback):
        """Spoils the adapter at the third step, so that the first checkpoint is the better one."""

        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:
                for parameter in filter(lambda p: p.requires_grad, model.parameters()):
                    parameter.data.normal_(std=3)

    best = trainer(tmp_path, load_best_model_at_end=True, eval_strategy="steps", eval_steps=2, learning_rate=1e-3)
    best.add_callback(Diverge())
    best.train()
    assert best.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    expected = pf.PeftModel.from_pretrained(build("llama"), tmp_path / "checkpoint-2")
    assert torch.equal(logits(best.model.eval()), logits(expected.eval()))


def vision():
    config = tf.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=8, patch_size=4,
    )  # fmt: skip
    return tf.ViTForImageClassification(config)


def layout():
    config = tf.LayoutLMConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_2d_position_embeddings=64,
    )  # fmt: skip
    return tf.LayoutLMForTokenClassification(config)


TEXT = IDS[0].tolist()
ONE_ROW = {  # {column: (model, target layers, a row of data that has the column)}
    "position_ids": (
        lambda: build("llama"), TARGETS["llama"], dict(input_ids=TEXT, labels=TEXT, position_ids=[*range(3, 10)]),
    ),
    "token_type_ids": (
        lambda: build("bert"), TARGETS["bert"], dict(input_ids=TEXT, labels=1, token_type_ids=[0, 0, 0, 1, 1, 1, 1]),
    ),
    "pixel_values": (vision, ["q_proj"], dict(pixel_values=torch.arange(192.0).view(3, 8, 8).tolist(), labels=1)),
    "bbox": (
        layout, ["query"], dict(input_ids=TEXT, bbox=[[1, 2, 3 + i, 4] for i in range(7)], labels=[0, 1] * 3 + [0]),
    ),
    "decoder_attention_mask": (
        lambda: build("t5"), TARGETS["t5"], dict(input_ids=TEXT, labels=TEXT, decoder_attention_mask=[1] * 6 + [0]),
    ),
}  # fmt: skip
TASKS = {
    "position_ids": "CAUSAL_LM",
    "token_type_ids": "SEQ_CLS",
    "bbox": "TOKEN_CLS",
    "decoder_attention_mask": "SEQ_2_SEQ_LM",
}


@pytest.mark.parametrize("with_task", [True, False])
@pytest.mark.parametrize("remove_unused_columns", [True, False])
@pytest.mark.parametrize("column", list(ONE_ROW))
def test_every_column_of_the_data_reaches_the_model(column, remove_unused_columns, with_task, tmp_path):
    """The model gets the same batch as without adapters, and an evaluation reports a loss."""
    make, targets, row = ONE_ROW[column]
    rows = [row | ({"noise": 1} if remove_unused_columns else {})] * 4
    config = pf.LoraConfig(target_modules=targets, task_type=TASKS.get(column) if with_task else None)
    seen, losses = [], []
    for wrap in (lambda model: pf.get_peft_model(model, config), lambda model: model):
        torch.manual_seed(0)
        base = make()
        base.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
        model, options = wrap(base), arguments(tmp_path, max_steps=1, remove_unused_columns=remove_unused_columns)
        run = Trainer(model, options, train_dataset=rows, eval_dataset=rows)
        seen.clear()
        losses.append(run.evaluate()["eval_loss"])
        if model is not base:
            run.train()
            assert_fused(model)
            ours = dict(seen[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert column in ours and torch.equal(ours[column], seen[0][column])
    given = {key for key, value in ours.items() if isinstance(value, torch.Tensor)}
    assert given >= {key for key, value in seen[0].items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("kind,task", [("llama", "CAUSAL_LM"), ("llama", None), ("t5", "SEQ_2_SEQ_LM")])
def test_label_smoothing_is_that_of_a_plain_model(kind, task, tmp_path):
    """Causal models shift the labels by one token. For Seq2Seq models a collator gives the inputs of the decoder."""
    losses, config = [], pf.LoraConfig(target_modules=TARGETS[kind], task_type=task)  # lora_B is zero
    for model in (pf.get_peft_model(build(kind), config), build(kind)):
        collator = DataCollatorForSeq2Seq(make_tokenizer(), model=model) if kind == "t5" else None
        options = arguments(tmp_path, label_smoothing_factor=0.2)
        run = Trainer(model, options, data_collator=collator, train_dataset=ROWS, eval_dataset=ROWS[:3])
        losses.append(run.evaluate()["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    "kind,task", [("llama", "CAUSAL_LM"), ("llama", None), ("bert", "SEQ_CLS"), ("t5", "SEQ_2_SEQ_LM")]
)
def test_the_adapter_alone_is_trained(kind, task, tmp_path):
    torch.manual_seed(0)
    model = pf.get_peft_model(build(kind), pf.LoraConfig(r=4, target_modules=TARGETS[kind], task_type=task))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    labels = (lambda ids: int(ids[0]) % 2) if kind == "bert" else list
    rows = [{"input_ids": ids.tolist(), "labels": labels(ids.tolist()), "noise": 1} for ids in IDS.repeat(4, 1)]
    options = arguments(tmp_path, max_steps=12, per_device_train_batch_size=4, save_strategy="no")
    run = Trainer(model, options, train_dataset=rows, eval_dataset=rows)
    first = run.evaluate()["eval_loss"]
    run.train()
    assert run.evaluate()["eval_loss"] < 0.9 * first
    assert_fused(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
