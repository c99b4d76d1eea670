"""pf.get_peft_model and pf.PeftModel: their classes, the ops that run, names, copying, checkpointing, compiling."""

import copy
import io
import pickle

import peft
import pytest
import torch
from torch import nn

import pypeft_fast as pf
from tests.device import runs_layers_whole
from tests.model.zoo import IDS, TARGETS, adapted, assert_fused, assert_same, build, logits

TASKS = {
    None: "PeftModel",
    "CAUSAL_LM": "PeftModelForCausalLM",
    "SEQ_2_SEQ_LM": "PeftModelForSeq2SeqLM",
    "SEQ_CLS": "PeftModelForSequenceClassification",
    "TOKEN_CLS": "PeftModelForTokenClassification",
    "QUESTION_ANS": "PeftModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "PeftModelForFeatureExtraction",
}


@pytest.mark.parametrize("task", list(TASKS))
def test_a_model_is_pefts_own_class_and_ours(task, tmp_path):
    kind = {"SEQ_2_SEQ_LM": "t5", "CAUSAL_LM": "llama", None: "llama"}.get(task, "bert")
    targets = [name for name in TARGETS[kind] if name != "dense"]
    model = pf.get_peft_model(build(kind), pf.LoraConfig(target_modules=targets, task_type=task))
    model.save_pretrained(tmp_path)
    for each in (model, pf.PeftModel.from_pretrained(build(kind), tmp_path)):
        assert type(each) is getattr(pf, TASKS[task])
        assert isinstance(each, pf.PeftModel) and isinstance(each, getattr(peft, TASKS[task]))
        assert isinstance(each, peft.PeftModel) and type(each).__name__ == TASKS[task]
        report = pf.fuse(each)
        assert report.fused and not report.left
        assert all(isinstance(each.get_submodule(name), peft.tuners.lora.Linear) for name in report.fused)
    assert pf.LoraConfig is peft.LoraConfig and pf.TaskType is peft.TaskType
    with pytest.raises(AttributeError, match="has no attribute 'NoTrainer'"):
        _ = pf.NoTrainer


@pytest.mark.parametrize("name", ["", "a.b", "training", "keys", "/abs/x", "..", 3])
def test_a_name_that_cannot_be_an_adapter_s_is_refused_before_anything_changes(name):
    base, config = build("llama"), pf.LoraConfig(target_modules=["q_proj"])
    before = {key: type(module) for key, module in base.named_modules()}
    wrapped = adapted(pf, "llama")
    for add in (lambda: pf.get_peft_model(base, config, name), lambda: pf.PeftModel(base, config, name)):
        with pytest.raises((ValueError, TypeError), match="adapter_name="):
            add()
    assert {key: type(module) for key, module in base.named_modules()} == before
    assert all(p.requires_grad for p in base.parameters())
    state = wrapped.state_dict().keys()
    with pytest.raises((ValueError, TypeError), match="adapter_name="):
        wrapped.add_adapter(name, config)
    assert wrapped.state_dict().keys() == state and list(wrapped.peft_config) == ["default"]


def test_the_fused_ops_run():
    model = adapted(pf, "llama")
    with pf.recording() as ran:
        logits(model).sum().backward()
    whole = runs_layers_whole()
    layer = ["lora_forward"] if whole else ["lora_shrink", "lora_linear"]
    forward = [*layer, "swiglu", *layer]  # q_proj, and down_proj with the activation before it
    apart = ["lora_ds_db", "lora_dx", "lora_da"]
    backward = [*apart[:2], "swiglu_backward", apart[2], *(["lora_backward"] if whole else apart)]
    assert [op for op, _ in ran] == forward * 2 + backward * 2


def test_attributes_are_those_of_the_base_model():
    model = adapted(pf, "llama", task_type="CAUSAL_LM")
    base = model.get_base_model()
    assert model.config is base.config and model.device == base.device and model.dtype == base.dtype
    assert model.active_peft_config.r == 4
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = model.no_such_thing


def copied(model):
    return copy.deepcopy(model)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved_whole(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("copying", [copied, pickled, saved_whole])
def test_a_copy_is_fused_and_independent(copying, merged):
    model = adapted(pf, "llama", task_type="CAUSAL_LM")
    apart = logits(model)
    if merged:
        model.merge_adapter()
    expected = logits(model)
    twin = copying(model)
    assert type(twin) is pf.PeftModelForCausalLM and torch.equal(logits(twin), expected)
    if merged:
        twin.unmerge_adapter()
        assert torch.equal(logits(twin), apart) and torch.equal(logits(model), expected)
    assert_fused(twin)
    twin.add_adapter("second", pf.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    twin.set_adapter("second")
    for parameter in twin.parameters():
        nn.init.zeros_(parameter)
    assert model.active_adapter == "default" and list(model.peft_config) == ["default"]
    assert torch.equal(logits(model), expected)


def test_the_frozen_weight_is_shared_not_copied():
    model = build("llama")
    weight = model.model.layers[0].self_attn.q_proj.weight
    layer = pf.get_peft_model(model, pf.LoraConfig(target_modules=["q_proj"])).get_base_model().model.layers[0]
    assert layer.self_attn.q_proj.weight is weight and not weight.requires_grad


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("method", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_gradient_checkpointing(reentrant, method):
    grads = []
    for checkpointing in (False, True):
        model = adapted(pf, "llama", lora_dropout=0.2, **method).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        torch.manual_seed(3)
        model(input_ids=IDS, labels=IDS).loss.backward()
        assert_fused(model)
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) == (12 if method else 8)
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)


@pytest.mark.parametrize("part", ["mlp", "model"])
def test_torch_compile_in_one_graph(part):
    model = adapted(pf, "llama")
    torch.compiler.reset()
    if part == "mlp":
        mlp, x = model.get_base_model().model.layers[0].mlp, torch.randn(2, 3, 32)
        expected, compiled = mlp(x), torch.compile(mlp, fullgraph=True, backend="aot_eager")
        assert_same(compiled(x), expected)
        assert_same(compiled(torch.randn(4, 5, 32)).shape, mlp(torch.randn(4, 5, 32)).shape)
    else:
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        expected = model(input_ids=IDS, use_cache=False).logits
        assert_same(compiled(input_ids=IDS, use_cache=False).logits, expected)


def test_torch_compile_after_a_call_that_named_rows():
    """A call with adapter_names must not prevent compilation for the rest of the process."""
    model = adapted(pf, "llama")
    logits(model, adapter_names=["default", "__base__", "default"])
    torch.compiler.reset()
    mlp, x = model.get_base_model().model.layers[0].mlp, torch.randn(2, 3, 32)
    assert_same(torch.compile(mlp, fullgraph=True, backend="aot_eager")(x), mlp(x))


@pytest.mark.parametrize("kind,task", [("llama", "CAUSAL_LM"), ("bert", "SEQ_CLS"), ("bert", "FEATURE_EXTRACTION")])
def test_a_task_s_model_compiles_in_one_graph(kind, task):
    model = adapted(pf, kind, task_type=task)
    inputs = dict(input_ids=IDS, attention_mask=torch.ones_like(IDS))
    if task == "FEATURE_EXTRACTION":
        model = pf.get_peft_model(build(kind).bert, pf.LoraConfig(target_modules=["query"], task_type=task)).eval()
    with torch.no_grad():
        expected = model(**inputs)[0]
        assert_same(torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs)[0], expected)


def test_a_class_derived_from_ours_is_kept(tmp_path):
    class Mine(pf.PeftModel):
        pass

    adapted(pf, "llama").save_pretrained(tmp_path)
    assert type(Mine.from_pretrained(build("llama"), tmp_path)) is Mine
    adapted(pf, "llama", task_type="CAUSAL_LM").save_pretrained(tmp_path / "task")
    assert type(Mine.from_pretrained(build("llama"), tmp_path / "task")) is pf.PeftModelForCausalLM


def test_layers_without_values_yet_are_fused(tmp_path):
    model = adapted(pf, "llama")
    expected = logits(model)
    model.save_pretrained(tmp_path)
    config = pf.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS["llama"])
    empty = pf.get_peft_model(build("llama"), config, low_cpu_mem_usage=True).eval()
    assert len(pf.fuse(empty).fused) == 4
    tensors = pf.load_peft_weights(str(tmp_path), device="cpu")
    pf.set_peft_model_state_dict(empty, tensors, low_cpu_mem_usage=True)
    assert_same(logits(empty), expected)
    assert pf.fuse(empty).calls() == {"fused": 4}


def test_positional_arguments_are_pefts():
    config = pf.LoraConfig(r=4, target_modules=["q_proj"])
    model = pf.get_peft_model(build("llama").bfloat16(), config, "x", False, False)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.bfloat16}
    mixed = pf.get_peft_model(build("llama"), config, "x", True)
    assert type(mixed) is pf.PeftMixedModel and mixed.peft_config["x"].base_model_name_or_path is None
