"""get_peft_model and PeftModel: wrapping twice, unknown adapters, Trainer, checkpointing, copying."""

import copy

import peft
import pytest
import torch
from torch import nn

import pypeft_fast as pf
from tests.device import ON_GPU
from tests.model.zoo import IDS, TARGETS, adapted, assert_same, build, logits


def test_wrapping_twice_is_refused():
    model = adapted(pf, "llama")
    config = pf.LoraConfig(target_modules=["q_proj"])
    for wrapped in (model, model.get_base_model()):
        with pytest.raises(ValueError, match="has adapters already; add another with model.add_adapter"):
            pf.get_peft_model(wrapped, config)
    with pytest.raises(TypeError, match="peft_config is a dict"):
        pf.get_peft_model(build("llama"), {})
    with pytest.raises(
        TypeError, match=r"peft_config is a peft\.\S*\.LoraConfig, expected one of pypeft_fast's LoraConfig, IA3Config"
    ):
        pf.get_peft_model(build("llama"), peft.LoraConfig())
    for wrap in (
        lambda model: pf.get_peft_model(model, config),
        lambda model: pf.PeftModel.from_pretrained(model, "a"),
    ):
        with pytest.raises(TypeError, match="model='gpt2' is a str, expected a torch.nn.Module"):
            wrap("gpt2")


def test_after_the_last_adapter_none_is_active():
    model = adapted(pf, "llama")
    with pytest.warns(UserWarning, match="no adapter is left: one that is added now .* after set_adapter"):
        model.delete_adapter("default")
    with pytest.raises(ValueError, match=r"no adapter is active; set_adapter\(name\)"):
        _ = model.active_peft_config
    model.add_adapter("new", pf.LoraConfig(r=2, target_modules=["q_proj"]))
    assert model.get_nb_trainable_parameters()[0] == 0
    model.set_adapter("new")
    assert model.get_nb_trainable_parameters()[0] > 0 and model.active_peft_config.r == 2


@pytest.mark.parametrize("name", ["default", "a.b", "", "__base__", "keys"])
def test_adapter_names(name):
    with pytest.raises(ValueError, match="adapter_name="):
        adapted(pf, "llama").add_adapter(name, pf.LoraConfig(target_modules=["q_proj"]))


def test_unknown_adapters_and_rows():
    model = adapted(pf, "llama")
    for call in (model.set_adapter, model.delete_adapter, lambda name: model.merge_adapter([name])):
        with pytest.raises(ValueError, match="there is no adapter 'nope'; there are default"):
            call("nope")
    with pytest.raises(ValueError, match="adapter_names names 'nope'; there are default and __base__"):
        logits(model, adapter_names=["nope", "default", "default"])
    with pytest.raises(ValueError, match="2 names for a batch of 3 rows"):
        logits(model, adapter_names=["default", "default"])
    with pytest.raises(ValueError, match="call model.eval"):
        logits(model.train(), adapter_names=["default"] * 3)
    model.eval().merge_adapter()
    with pytest.raises(ValueError, match="while .* are merged"):
        logits(model, adapter_names=["default"] * 3)


def test_the_fused_ops_run_and_disabling_reaches_a_merged_model():
    model = adapted(pf, "llama")
    with pf.recording() as ran:
        logits(model).sum().backward()
    layer = ["lora_shrink", "lora_linear"] if ON_GPU else ["lora_forward"]
    forward = [*layer, "swiglu", *layer]  # q_proj, and down_proj with the activation before it
    apart = ["lora_ds_db", "lora_dx", "lora_da"]
    backward = [*apart[:2], "swiglu_backward", apart[2], *(apart if ON_GPU else ["lora_backward"])]
    assert [op for op, _ in ran] == forward * 2 + backward * 2
    expected = logits(model)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(build("llama")))
    assert_same(logits(model), expected)
    assert all(layer.merged for layer in model.base_model.linear_layers())


def test_attributes_are_the_models_own():
    model = adapted(pf, "llama", task_type="CAUSAL_LM")
    base = model.get_base_model()
    assert model.config is base.config and model.device == base.device and model.dtype == base.dtype
    assert type(model).__name__ == "PeftModelForCausalLM" and model.active_peft_config.r == 4
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = model.no_such_thing
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), logits(model))
    twin.delete_adapter("default")
    assert model.active_adapter == "default"


def test_layers_are_linear_and_share_the_frozen_weight():
    model = build("llama")
    weight = model.model.layers[0].self_attn.q_proj.weight
    calls = []
    model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda *_: calls.append(1))
    wrapped = pf.get_peft_model(model, pf.LoraConfig(target_modules=["q_proj"]))
    layer = wrapped.get_base_model().model.layers[0].self_attn.q_proj
    assert isinstance(layer, nn.Linear) and layer.weight is weight and not weight.requires_grad
    logits(wrapped)
    assert calls == [1], "a hook on the layer was lost"


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    grads = []
    for checkpointing in (False, True):
        model = adapted(pf, "llama", lora_dropout=0.2).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        torch.manual_seed(3)
        model(input_ids=IDS, labels=IDS).loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) == 8
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)


@pytest.mark.cpu  # use_cpu moves the model away from the tensors that a GPU's run makes
@pytest.mark.parametrize("kind,task", [("llama", "CAUSAL_LM"), ("bert", "SEQ_CLS"), ("t5", "SEQ_2_SEQ_LM")])
def test_trainer_trains_the_adapter_only(kind, task, tmp_path):
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    model = pf.get_peft_model(build(kind), pf.LoraConfig(r=4, target_modules=TARGETS[kind], task_type=task))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    labels = (lambda ids: int(ids[0]) % 2) if kind == "bert" else list
    rows = [{"input_ids": ids.tolist(), "labels": labels(ids.tolist()), "noise": 1} for ids in IDS.repeat(4, 1)]
    options = TrainingArguments(
        tmp_path, max_steps=12, learning_rate=0.02, per_device_train_batch_size=4, report_to="none", logging_steps=1,
        save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, options, train_dataset=rows, eval_dataset=rows)  # drops the column "noise" by itself
    first = trainer.evaluate()["eval_loss"]  # needs the name of the labels
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.9 * first
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_torch_compile_in_one_graph():
    model = adapted(pf, "llama")
    compiled = torch.compile(model.get_base_model().model.layers[0].mlp, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 32)
    assert_same(compiled(x), model.get_base_model().model.layers[0].mlp(x))
