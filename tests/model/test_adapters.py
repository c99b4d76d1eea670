"""Several adapters on one model: what may be active together, what a failure leaves, and what Trainer saves."""

import peft
import pytest
import torch
from safetensors.torch import load_file

import pypeft_fast as pf
from tests.model.test_foreign_files import tied
from tests.model.zoo import IDS, adapted, assert_same, build, liven, logits


def two(kind="llama", **options):
    """Adapters "default" and "second", both with something to say, "default" active."""
    model = adapted(pf, kind, **options)
    model.add_adapter("second", pf.LoraConfig(r=2, target_modules=options.get("target_modules", ["k_proj"])))
    model.set_adapter("second")
    liven(model, 9, "second")
    model.set_adapter("default")
    return model


def test_the_tuner_switches_as_pefts_does():
    model = two()
    expected = logits(model)
    model.base_model.set_adapter(["default", "second"])
    assert model.active_adapters == ["default", "second"] and (logits(model) - expected).abs().max() > 1e-3
    model.base_model.set_adapter("default")
    assert torch.equal(logits(model), expected)
    model.merge_adapter()
    model.disable_adapter_layers()
    assert torch.equal(logits(model), logits(build("llama")))
    model.enable_adapter_layers()
    assert torch.equal(logits(model), expected)


def test_a_refused_set_adapter_changes_nothing():
    model = two()
    before = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match="there is no adapter 'nope'"):
        model.set_adapter(["second", "nope"], inference_mode=True)
    with pytest.raises(ValueError, match="set_adapter needs at least one adapter"):
        model.set_adapter([])
    assert model.active_adapters == ["default"] and not model.peft_config["second"].inference_mode
    assert [p.requires_grad for p in model.parameters()] == before


def test_two_copies_of_one_module_cannot_be_active_together():
    model = adapted(pf, "bert", modules_to_save=["classifier"])
    model.add_adapter("second", pf.LoraConfig(target_modules=["query"], modules_to_save=["classifier"]))
    model.add_adapter("third", pf.LoraConfig(target_modules=["query"]))
    with pytest.raises(ValueError, match="default and second each have a Linear in modules_to_save"):
        model.set_adapter(["default", "second"])
    assert model.active_adapters == ["default"]
    model.set_adapter(["third", "default"])
    assert not torch.equal(logits(model), logits(build("bert")))


def test_one_module_is_not_adapted_and_saved_whole():
    model = adapted(pf, "bert", modules_to_save=["classifier"], target_modules=["query"])
    expected, names = logits(model), set(model.state_dict())
    with pytest.raises(ValueError, match="matches classifier, a SavedModule; supported are"):
        model.add_adapter("second", pf.LoraConfig(target_modules=["classifier"]))
    with pytest.raises(ValueError, match="query, but .*query is adapted"):
        model.add_adapter("second", pf.LoraConfig(target_modules=["value"], modules_to_save=["query"]))
    with pytest.raises(ValueError, match="attention, but .*query is adapted"):
        model.add_adapter("second", pf.LoraConfig(target_modules=["dense"], modules_to_save=["0.attention"]))
    assert list(model.peft_config) == ["default"]
    assert set(model.state_dict()) == names and torch.equal(logits(model), expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_merge_that_fails_leaves_no_adapter_merged(kind):
    model = two(kind, target_modules=["q_proj", "c_attn"])
    model.merge_adapter(["second"])
    expected = logits(model)
    merged = [list(layer.merged) for layer in model.base_model.linear_layers()]
    last = model.base_model.linear_layers()[-1]
    last.lora_B["default"].weight.data[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"merging \['default'\] would give NaN or infinite weights"):
        model.merge_adapter(["default"], safe_merge=True)
    assert [layer.merged for layer in model.base_model.linear_layers()] == merged
    assert torch.equal(logits(model), expected)
    model.unmerge_adapter()
    assert all(torch.equal(v, build(kind).state_dict()[k]) for k, v in model.unload().state_dict().items())


def test_unload_keeps_the_active_copy_of_a_saved_module_as_peft_does():
    unloaded = [adapted(library, "bert", modules_to_save=["classifier"]).unload() for library in (pf, peft)]
    assert_same(logits(unloaded[0]), logits(unloaded[1]))
    assert (logits(unloaded[0]) - logits(build("bert"))).abs().max() > 1e-3
    model = adapted(pf, "bert", modules_to_save=["classifier"])
    with model.disable_adapter():
        assert torch.equal(logits(model.unload()), logits(build("bert")))


def test_loading_over_an_adapter_of_another_scaling_is_refused(tmp_path):
    adapted(pf, "llama", lora_alpha=32).save_pretrained(tmp_path / "alpha")
    adapted(pf, "llama", alpha_pattern={"q_proj": 5}).save_pretrained(tmp_path / "pattern")
    model = adapted(pf, "llama")
    expected = logits(model)
    for folder, words in (("alpha", "has lora_alpha=32"), ("pattern", "has other layers, ranks or scalings")):
        with pytest.raises(ValueError, match=f"{words}, unlike the adapter 'default' that is here; delete_adapter"):
            model.load_adapter(tmp_path / folder, "default")
    assert torch.equal(logits(model), expected)
    model.load_adapter(tmp_path / "alpha", "other")
    model.set_adapter("other")
    assert_same(logits(model), logits(adapted(pf, "llama", lora_alpha=32)))


def test_only_one_adapter_trains_biases():
    model = adapted(pf, "bert", bias="all", modules_to_save=["classifier"])
    frozen = model.get_base_model().classifier.original_module
    assert not any(p.requires_grad for p in frozen.parameters())
    with pytest.raises(ValueError, match="bias='lora_only': adapter 'default' trains the same biases already"):
        model.add_adapter("second", pf.LoraConfig(target_modules=["query"], bias="lora_only"))


def test_deleting_keeps_an_adapter_for_inference_frozen(tmp_path):
    adapted(pf, "llama").save_pretrained(tmp_path)
    model = pf.PeftModel.from_pretrained(build("llama"), tmp_path)
    model.load_adapter(tmp_path, "second")
    model.delete_adapter("default")
    assert model.active_adapter == "second" and not any(p.requires_grad for p in model.parameters())


def test_hooks_of_a_layer_stay_with_it():
    model, calls = build("llama"), []
    layer = model.model.layers[0].self_attn.q_proj
    layer.register_forward_pre_hook(lambda module, args, kwargs: calls.append("before"), with_kwargs=True)
    handle = layer.register_forward_hook(lambda module, args, kwargs, y: calls.append("after"), with_kwargs=True)
    layer.register_full_backward_hook(lambda module, grads_in, grads_out: calls.append("back"))
    wrapped = pf.get_peft_model(model, pf.LoraConfig(target_modules=["q_proj"]))
    logits(wrapped).sum().backward()
    assert calls == ["before", "after", "back"]
    handle.remove()
    logits(wrapped.unload())
    assert calls == ["before", "after", "back", "before"]


def test_a_model_that_peft_has_wrapped_is_refused():
    config = pf.LoraConfig(target_modules="all-linear")
    for model in (adapted(peft, "llama"), adapted(peft, "llama").get_base_model()):
        with pytest.raises(ValueError, match="has adapters already"):
            pf.get_peft_model(model, config)


def test_trainer_saves_and_resumes_a_model_with_tied_weights(tmp_path):
    from transformers import Trainer, TrainingArguments

    def trainer(steps):
        torch.manual_seed(0)
        config = pf.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
        model = pf.get_peft_model(tied(), config)
        rows = [{"input_ids": ids.tolist(), "labels": ids.tolist()} for ids in IDS.repeat(4, 1)]
        options = TrainingArguments(
            tmp_path, max_steps=steps, save_steps=2, learning_rate=0.02, lr_scheduler_type="constant",
            report_to="none", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        return Trainer(model, options, train_dataset=rows)

    straight = trainer(4)
    straight.train()
    saved = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert "base_model.model.model.embed_tokens.weight" in saved
    assert "base_model.model.lm_head.weight" not in saved
    resumed = trainer(4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same(logits(resumed.model.eval()), logits(straight.model.eval()))


def test_a_state_dict_of_tied_weights_loads_strictly():
    model, other = (pf.get_peft_model(tied(), pf.LoraConfig(target_modules=["q_proj"])) for _ in range(2))
    liven(model)
    assert (logits(model) - logits(other)).abs().max() > 1e-3
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(logits(model), logits(other))
    head, embedding = other.get_base_model().lm_head, other.get_base_model().get_input_embeddings()
    assert head.weight is embedding.weight
