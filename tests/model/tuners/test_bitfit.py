"""BitFit on whole models: the trained parameters, gradients equal to those of the biases themselves, and files."""

import copy
import io
import pickle

import peft
import pytest
import torch
import transformers as tf
from torch import nn

from pypeft_fast.model.joints import rows
from pypeft_fast.model.tuners import BitFitConfig
from pypeft_fast.model.tuners.bitfit_layer import BitFitLayer
from tests.model.zoo import IDS, assert_same, build, liven, logits

KINDS = ["llama", "gpt2", "bert"]


def biased(kind, base=None, **options):
    model = peft.get_peft_model(build(kind) if base is None else base, BitFitConfig(**options))
    liven(model)
    return model.eval()


def biases(model):
    """{name of the module: bias} of a model without adapters."""
    return {n.removesuffix(".bias"): p for n, p in model.named_parameters() if n.endswith(".bias")}


def masked():
    torch.manual_seed(0)
    config = tf.BertConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48
    )
    return tf.BertForMaskedLM(config).eval()


def layers(model):
    return [m for m in model.modules() if isinstance(m, BitFitLayer)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_bias_trains_and_nothing_else_with_autograds_own_gradients(kind):
    model, base = biased(kind), build(kind)
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert names == {f"base_model.model.{n}.bitfit_bias.default" for n in biases(base)} and names
    for name, bias in biases(base).items():
        bias.data.copy_(model.base_model.model.get_submodule(name).bitfit_bias["default"].data)
    base.requires_grad_(False)
    for bias in biases(base).values():
        bias.requires_grad_()
    outputs = [logits(m) for m in (model, base)]
    assert_same(*outputs)
    assert (outputs[0] - logits(build(kind))).abs().max() > 1e-3
    for output in outputs:
        output.square().mean().backward()
    for name, bias in biases(base).items():
        grad = model.base_model.model.get_submodule(name).bitfit_bias["default"].grad
        torch.testing.assert_close(grad, bias.grad, rtol=0, atol=1e-6 + 1e-4 * bias.grad.abs().max().item())
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(build(kind)))
    assert torch.equal(logits(model.unload()), logits(build(kind)))


def test_a_new_adapter_changes_nothing():
    for kind in KINDS:
        assert torch.equal(logits(peft.get_peft_model(build(kind), BitFitConfig()).eval()), logits(build(kind)))


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_files(kind, low_memory, tmp_path):
    model = biased(kind, task_type="SEQ_CLS" if kind == "bert" else None)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(build(kind), tmp_path, low_cpu_mem_usage=low_memory)
    assert torch.equal(logits(loaded), logits(model))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert isinstance(peft.PeftConfig.from_pretrained(tmp_path), BitFitConfig)
    with pytest.raises(ValueError, match="BitFit finds no bias in this T5"):
        peft.PeftModel.from_pretrained(build("t5"), tmp_path)


def test_files_of_a_model_whose_modules_have_names_like_ours(tmp_path):
    """PEFT 0.18 identifies the tensors of an adapter by a part of their names."""
    model = nn.ModuleDict({"bitfit": nn.Linear(3, 3), "bias": nn.Linear(3, 3)})
    adapted = peft.get_peft_model(copy.deepcopy(model), BitFitConfig())
    liven(adapted)
    keys = set(peft.get_peft_model_state_dict(adapted))
    assert keys == {f"base_model.model.{name}.bitfit_bias" for name in ("bitfit", "bias")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_merging_and_unmerging_are_exact(kind, dtype):
    model = biased(kind, build(kind).to(dtype))
    before = {n: p.clone() for n, p in model.named_parameters()}
    expected = logits(model)
    model.merge_adapter(safe_merge=True)
    assert torch.equal(logits(model), expected)
    with pytest.raises(ValueError, match="while .'default'. are merged"), rows.using(rows.Rows(("default",) * 3)):
        logits(model)
    model.unmerge_adapter()
    assert torch.equal(logits(model), expected)
    after = dict(model.named_parameters())
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(build(kind).to(dtype)))
    merged = model.merge_and_unload()
    assert torch.equal(logits(merged), expected)
    assert [type(m) for m in merged.modules()] == [type(m) for m in build(kind).modules()]
    assert merged.state_dict().keys() == build(kind).state_dict().keys()


def test_a_merged_model_that_is_cast_keeps_what_unmerging_restores():
    model = biased("bert")
    model.merge_adapter()
    model.to(torch.float64)
    expected = logits(model)
    model.unmerge_adapter()
    assert_same(logits(model), expected)
    assert all(torch.equal(a, b.double()) for a, b in zip(base_biases(model), base_biases(biased("bert")), strict=True))


def base_biases(model):
    return [layer.get_base_layer().bias for layer in layers(model)]


def test_merging_a_broken_adapter_safely_is_refused():
    model = biased("bert")
    layers(model)[0].bitfit_bias["default"].data[0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity in the bias of adapter 'default'"):
        model.merge_adapter(safe_merge=True)


def test_missing_biases_are_added_on_request(tmp_path):
    with pytest.raises(ValueError, match="BitFit finds no bias in this T5ForConditionalGeneration"):
        peft.get_peft_model(build("t5"), BitFitConfig())
    with pytest.raises(
        ValueError, match="matches encoder.*SelfAttention.q, a Linear that has no bias; add_missing=True"
    ):
        peft.get_peft_model(build("t5"), BitFitConfig(target_modules=["q"]))
    model = peft.get_peft_model(build("t5"), BitFitConfig(add_missing=True)).eval()
    assert_same(logits(model), logits(build("t5")))
    linear = {n for n, m in build("t5").named_modules() if isinstance(m, nn.Linear) and n != "lm_head"}
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert names == {f"base_model.model.{n}.bitfit_bias.default" for n in linear}
    liven(model)
    expected = logits(model)
    assert (expected - logits(build("t5"))).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(peft.PeftModel.from_pretrained(build("t5"), tmp_path)), expected)
    model.merge_adapter()
    assert torch.equal(logits(model), expected)
    model.unmerge_adapter()
    assert torch.equal(logits(model), expected)
    assert_same(logits(model.unload()), logits(build("t5")))


@pytest.mark.filterwarnings("error:You have passed exclude_modules")
def test_by_names_and_rows():
    model = biased("bert", target_modules=["query", "LayerNorm"], exclude_modules=r".*\.1\..*")
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert names and all(".0." in n or "embeddings.LayerNorm" in n for n in names)
    model.add_adapter("second", BitFitConfig(target_modules=["key", "query"]))
    model.set_adapter("second")
    liven(model, 2, "second")
    expected = {"second": logits(model)}
    model.set_adapter("default")
    expected |= {"default": logits(model), "__base__": logits(build("bert"))}
    named = ("second", "__base__", "default")
    with rows.using(rows.Rows(named)):
        mixed = logits(model)
    for i, name in enumerate(named):
        assert_same(mixed[i], expected[name][i])


def test_all_linear_layers_and_a_second_adapter_on_them():
    model = biased("bert", target_modules="all-linear")
    linear = [m for m in layers(model) if isinstance(m.get_base_layer(), nn.Linear)]
    assert linear == layers(model) and len(linear) == 14
    model.add_adapter("second", BitFitConfig(target_modules="all-linear"))
    assert all(set(layer.bitfit_bias) == {"default", "second"} for layer in linear)


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shared_biases_stay_shared(dtype, low_memory, tmp_path):
    model = peft.get_peft_model(Siblings().to(dtype), BitFitConfig())
    liven(model)
    assert len([p for p in model.parameters() if p.requires_grad]) == 1
    model.save_pretrained(tmp_path)
    options = dict(is_trainable=True, low_cpu_mem_usage=low_memory)
    model = peft.PeftModel.from_pretrained(Siblings().to(dtype), tmp_path, **options)
    model = copy.deepcopy(model)
    assert len([p for p in model.parameters() if p.requires_grad]) == 1
    x = torch.randn(5, 3, dtype=dtype)
    expected, own = model(x), Siblings().left.bias.to(dtype)
    model.merge_adapter()
    base = model.get_base_model()
    assert torch.equal(model(x), expected) and base.left.base_layer.bias is base.right.base_layer.bias
    model.unmerge_adapter()
    assert torch.equal(model(x), expected) and torch.equal(base.left.base_layer.bias, own)


class Siblings(nn.Module):
    """Two linear layers that share one bias."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(3, 3), nn.Linear(3, 3)
        self.right.bias = self.left.bias

    def forward(self, x):
        return self.left(x) * self.right(x)


def test_a_module_that_holds_the_bias_of_its_child_gets_no_adapter():
    model = peft.get_peft_model(masked(), BitFitConfig())
    names = [n for n, p in model.named_parameters() if p.requires_grad and "predictions" in n]
    assert names == [
        "base_model.model.cls.predictions.transform.dense.bitfit_bias.default",
        "base_model.model.cls.predictions.transform.LayerNorm.bitfit_bias.default",
        "base_model.model.cls.predictions.decoder.bitfit_bias.default",
    ]
    liven(model)
    expected = model.eval()(input_ids=IDS).logits
    assert (expected - masked()(input_ids=IDS).logits).abs().max() > 1e-3
    head = model.merge_and_unload().cls.predictions
    assert head.decoder.bias is head.bias


def test_one_set_of_biases_at_a_time():
    model = biased("bert")
    model.add_adapter("second", BitFitConfig(target_modules=["value", "dense"]))
    with pytest.raises(ValueError, match="default and second have a bias for the same layer"):
        model.base_model.set_adapter(["default", "second"])
    assert all(layer.active_adapters == ["default"] for layer in layers(model))  # no layer was switched
    model.merge_adapter()
    with pytest.raises(ValueError, match="default and second have a bias for the same layer"):
        model.merge_adapter(["second"])


def test_switching_adding_deleting_and_status():
    model = biased("bert")
    model.add_adapter("second", BitFitConfig(target_modules=["value"]))
    first = logits(model)
    status = {s.name: s for s in model.get_layer_status()}
    assert len(status) == len(biases(build("bert")))
    value = status["model.bert.encoder.layer.0.attention.self.value"]
    assert value.available_adapters == ["default", "second"] and value.active_adapters == ["default"]
    assert value.requires_grad == {"default": True, "second": False}
    assert model.get_nb_trainable_parameters()[0] == sum(b.numel() for b in biases(build("bert")).values())
    model.set_adapter("second")
    liven(model, 2, "second")
    assert {n.split(".")[-3] for n, p in model.named_parameters() if p.requires_grad} == {"value"}
    second = logits(model)
    model.set_adapter("default")
    assert torch.equal(logits(model), first) and not torch.equal(first, second)
    model.set_adapter("second")
    model.delete_adapter("default")
    assert torch.equal(logits(model), second) and list(model.peft_config) == ["second"]
    assert not any("default" in name for name in model.state_dict())


def test_half_precision_trains_in_float32(tmp_path):
    """The values of a file are not rounded to the dtype of the model, and frozen parameters stay frozen."""
    model = biased("bert", build("bert").to(torch.bfloat16))
    trained = [layer.bitfit_bias["default"] for layer in layers(model)]
    assert {p.dtype for p in trained} == {torch.float32}
    model.add_adapter("second", BitFitConfig())
    model.save_pretrained(tmp_path, selected_adapters=["default"])
    for low_memory in (False, True):
        loaded = peft.PeftModel.from_pretrained(
            build("bert").to(torch.bfloat16), tmp_path, low_cpu_mem_usage=low_memory
        )
        found = [layer.bitfit_bias["default"] for layer in layers(loaded)]
        assert all(torch.equal(a, b) and not b.requires_grad for a, b in zip(trained, found, strict=True))
        assert torch.equal(logits(loaded), logits(model))
    model.train()(input_ids=IDS, labels=torch.tensor([0, 1, 0])).loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in trained if p is not trained[2])
    assert {p.requires_grad for layer in layers(model) for n, p in layer.bitfit_bias.items() if n == "second"} == {
        False
    }


def test_copies_pickles_and_state_dicts():
    model = biased("gpt2")
    expected = logits(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(twin), expected)
        next(p for p in twin.parameters() if p.requires_grad).data += 1
        assert torch.equal(logits(model), expected)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    fresh = peft.get_peft_model(build("gpt2"), BitFitConfig()).eval()
    fresh.load_state_dict(torch.load(buffer))
    assert torch.equal(logits(fresh), expected)


def test_gradient_checkpointing():
    grads = []
    for checkpointing in (False, True):
        model = biased("llama").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids=IDS, labels=IDS).loss.backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
