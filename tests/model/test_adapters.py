"""Several adapters on one model: switching, adding and deleting, merging that fails, hooks, strict state dicts."""

import peft
import pytest
import torch

import pypeft_fast as pf
from tests.model.zoo import TARGETS, adapted, assert_fused, assert_same, build, liven, logits, tied

LAST = "base_model.model.model.layers.1.mlp.down_proj.lora_B.default.weight"


def two(kind="llama", library=pf, **options):
    """A model with the adapters "default" and "second", both with random values; "default" is active."""
    model = adapted(library, kind, **options)
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=options.get("target_modules", ["k_proj"])))
    model.set_adapter("second")
    liven(model, 9, "second")
    model.set_adapter("default")
    return model


def layers(model):
    return [model.get_submodule(name) for name in pf.fuse(model).fused]


def test_layers_that_come_later_are_fused_and_switching_reaches_them_all():
    model = two()
    first = logits(model)
    model.base_model.set_adapter(["default", "second"])
    assert model.active_adapters == ["default", "second"]
    both = logits(model)
    model.set_adapter("second")
    second = logits(model)
    assert min((a - b).abs().max() for a, b in ((first, both), (both, second), (first, second))) > 1e-3
    theirs = two(library=peft)
    assert_same(first, logits(theirs))
    theirs.base_model.set_adapter(["default", "second"])
    assert_same(both, logits(theirs))
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    assert_fused(model)


def test_disabling_reaches_a_merged_model():
    model = two()
    expected = logits(model)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(build("llama")))
    assert_same(logits(model), expected)
    model.base_model.disable_adapter_layers()
    assert torch.equal(logits(model), logits(build("llama")))
    model.base_model.enable_adapter_layers()
    model.unmerge_adapter()
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_merge_that_fails_leaves_no_adapter_merged(kind):
    model = two(kind, target_modules=TARGETS[kind][:1])
    model.merge_adapter(["second"])
    expected, before = logits(model), {k: v.clone() for k, v in model.state_dict().items()}
    last = layers(model)[-1]
    last.lora_B["default"].weight.data[0, 0] = float("inf")
    with pytest.raises(ValueError, match="NaNs detected in the merged weights"):
        model.merge_adapter(["default"], safe_merge=True)
    assert [layer.merged_adapters for layer in layers(model)] == [["second"]] * len(layers(model))
    state = model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in before.items() if "lora_B.default" not in k)
    assert torch.equal(logits(model), expected)
    model.unmerge_adapter()
    assert all(torch.equal(v, build(kind).state_dict()[k]) for k, v in model.unload().state_dict().items())


def test_a_safe_merge_that_fails_takes_no_adapter_off():
    model = adapted(pf, "llama")
    expected = logits(model)
    layers(model)[-1].lora_B["default"].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_and_unload(safe_merge=True)
    assert len(layers(model)) == 4 and not any(layer.merged for layer in layers(model))
    layers(model)[-1].lora_B["default"].weight.data.copy_(adapted(pf, "llama").state_dict()[LAST])
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_adapters_merged_in_turn_are_unmerged_exactly(kind, dtype):
    model = two(kind, target_modules=TARGETS[kind][:1], dtype=dtype)
    model.base_model.set_adapter(["default", "second"])
    before, expected = {k: v.clone() for k, v in model.state_dict().items()}, logits(model)
    model.merge_adapter(["second"])
    model.merge_adapter(["default"])
    error = (logits(model) - expected).abs().max()
    assert error < 40 * torch.finfo(dtype).eps * expected.abs().max()
    model.unmerge_adapter()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_merged_model_in_another_dtype_is_unmerged_to_that_dtype_s_weights():
    model = adapted(pf, "llama")
    model.merge_adapter()
    model.to(torch.bfloat16)
    model.unmerge_adapter()
    original = build("llama").to(torch.bfloat16).state_dict()
    assert all(torch.equal(v, original[k]) for k, v in model.unload().state_dict().items())


def test_unloading_a_merged_model_keeps_what_is_merged_as_peft_does():
    ours, theirs = adapted(pf, "llama"), adapted(peft, "llama")
    expected = logits(ours)
    for model in (ours, theirs):
        model.merge_adapter()
    assert_same(logits(ours.unload()), expected)
    assert_same(logits(theirs.unload()), expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("merged", [False, True])
def test_an_adapter_that_changes_the_weight_is_added_to_the_frozen_one(kind, merged):
    modules = TARGETS[kind][:1]
    expected, model = logits(build(kind)), adapted(pf, kind, target_modules=modules)
    if merged:
        model.merge_adapter()
    model.add_adapter("changing", pf.LoraConfig(r=4, target_modules=modules, init_lora_weights="pissa"))
    model.unmerge_adapter()
    model.set_adapter("changing")
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-4)
    liven(model, 3, "changing")
    assert (logits(model) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("targets", [["q_proj"], ["k_proj"]], ids=["shared layers", "other layers"])
def test_deleting_the_active_adapter_activates_one_that_is_left(targets):
    model = adapted(pf, "llama", target_modules=["q_proj"])
    model.add_adapter("second", pf.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    model.set_adapter("second")
    expected = logits(model)
    model.set_adapter("default")
    model.delete_adapter("default")
    assert model.active_adapter == "second" and model.active_adapters == ["second"]
    assert torch.equal(logits(model), expected)
    assert not any(".default." in name for name in model.state_dict())


def test_hooks_of_a_layer_are_kept():
    model, calls = build("llama"), []
    layer = model.model.layers[1].self_attn.q_proj  # its input has a gradient
    layer.register_forward_pre_hook(lambda module, args, kwargs: calls.append("before"), with_kwargs=True)
    handle = layer.register_forward_hook(lambda module, args, kwargs, y: calls.append("after"), with_kwargs=True)
    layer.register_full_backward_hook(lambda module, grads_in, grads_out: calls.append("back"))
    wrapped = pf.get_peft_model(model, pf.LoraConfig(target_modules=["q_proj"]))
    logits(wrapped).sum().backward()
    assert calls == ["before", "after", "back"]
    report = pf.fuse(wrapped)
    assert not report.left and len(report.fused) == 2
    logits(wrapped)  # the update is fused around the layer, and the hooks of the layer are called
    assert calls == ["before", "after", "back", "before", "after"]
    assert report.calls()["fused around the base: the base layer has hooks or a forward of its own"] > 0
    handle.remove()
    logits(wrapped.unload())
    assert calls == ["before", "after", "back", "before", "after", "before"]


def test_a_state_dict_of_tied_weights_loads_strictly():
    model, other = (pf.get_peft_model(tied(), pf.LoraConfig(target_modules=["q_proj"])) for _ in range(2))
    liven(model)
    assert (logits(model) - logits(other)).abs().max() > 1e-3
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(logits(model), logits(other))
    head, embedding = other.get_base_model().lm_head, other.get_base_model().get_input_embeddings()
    assert head.weight is embedding.weight


def test_a_list_makes_several_adapters_active():
    model = two()
    alone = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        alone[name] = logits(model)
    model.set_adapter(["default", "second"])
    assert model.active_adapters == ["default", "second"]
    both = logits(model)
    assert all((both - one).abs().max() > 1e-3 for one in alone.values())
    model.base_model.set_adapter(["default", "second"])
    assert torch.equal(logits(model), both)
    for names in (["default", "nope"], []):
        with pytest.raises(ValueError, match="give names of adapters; there are"):
            model.set_adapter(names)
    assert model.active_adapters == ["default", "second"]


def test_without_an_adapter_the_model_is_the_base():
    model = adapted(pf, "llama", task_type="CAUSAL_LM")
    model.delete_adapter("default")
    assert model.active_adapters == [] and not model.peft_config
    with torch.no_grad():
        assert torch.equal(logits(model), logits(build("llama")))
    model.add_adapter("new", pf.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.set_adapter("new")
    assert (logits(model) - logits(build("llama"))).abs().max() > 1e-3


@pytest.mark.parametrize("task,head", [("TOKEN_CLS", "classifier"), ("QUESTION_ANS", "qa_outputs")])
def test_the_head_of_a_task_is_trained_whole_and_not_adapted(task, head, tmp_path):
    import transformers as tf

    kind = {"TOKEN_CLS": tf.BertForTokenClassification, "QUESTION_ANS": tf.BertForQuestionAnswering}[task]
    sizes = dict(vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    config = pf.LoraConfig(target_modules="all-linear", task_type=task)
    model = pf.get_peft_model(kind(tf.BertConfig(**sizes)), config)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any(f"{head}.modules_to_save.default.weight" in name for name in trained)
    assert not any(head in name and "lora_" in name for name in trained)
    saved = model.peft_config["default"].modules_to_save
    assert head in saved and len(set(saved)) == len(saved)
    model.add_adapter("second", pf.LoraConfig(target_modules="all-linear", task_type=task))
    model.save_pretrained(tmp_path)
    loaded = pf.PeftModel.from_pretrained(kind(tf.BertConfig(**sizes)), tmp_path)
    assert head in loaded.peft_config["default"].modules_to_save


def test_values_written_through_data_count_at_once():
    """Averages of weights and fused optimizers write through .data, which changes no version counter."""
    model = adapted(pf, "llama", use_dora=True)
    with torch.no_grad():
        before = logits(model)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.mul_(3)
        after = logits(model)
        fresh = adapted(pf, "llama", use_dora=True)
        fresh.load_state_dict(model.state_dict())
        assert_same(after, logits(fresh))
    assert (after - before).abs().max() > 1e-2
