"""BitFit on whole models: what trains, that it is what autograd gives for the biases themselves, and its files."""

import pytest
import torch
from torch import nn

import pypeft_fast as pf
from tests.model.zoo import IDS, assert_same, build, liven, logits

KINDS = ["llama", "gpt2", "bert"]


def biased(kind, **options):
    model = pf.get_peft_model(build(kind), pf.BitFitConfig(**options))
    liven(model)
    return model.eval()


def biases(model):
    """{module: bias} of a bare model."""
    return {n.removesuffix(".bias"): p for n, p in model.named_parameters() if n.endswith(".bias")}


@pytest.mark.parametrize("kind", KINDS)
def test_every_bias_trains_and_nothing_else_with_autograds_own_gradients(kind):
    model, base = biased(kind), build(kind)
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert names == {f"base_model.model.{n}.bitfit_bias.default" for n in biases(base)} and names
    assert torch.equal(logits(base), logits(build(kind)))
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
        assert_same(logits(model), logits(build(kind)))
    assert_same(logits(model.unload()), logits(build(kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_files(kind, tmp_path):
    model = biased(kind, task_type="SEQ_CLS" if kind == "bert" else None)
    model.save_pretrained(tmp_path)
    loaded = pf.PeftModel.from_pretrained(build(kind), tmp_path)
    assert_same(logits(loaded), logits(model))
    assert isinstance(pf.PeftConfig.from_pretrained(tmp_path), pf.BitFitConfig)
    with pytest.raises(ValueError, match="BitFit finds no bias in this T5"):
        pf.PeftModel.from_pretrained(build("t5"), tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_merging(kind):
    model = biased(kind)
    expected = logits(model)
    model.merge_adapter(safe_merge=True)
    assert_same(logits(model), expected)
    with model.disable_adapter():
        assert_same(logits(model), logits(build(kind)))
    with pytest.raises(ValueError, match="while .'default'. are merged"):
        logits(model, adapter_names=["default"] * 3)
    model.unmerge_adapter()
    assert_same(logits(model), expected)
    merged = model.merge_and_unload()
    assert_same(logits(merged), expected)
    assert [type(m) for m in merged.modules()] == [type(m) for m in build(kind).modules()]
    assert merged.state_dict().keys() == build(kind).state_dict().keys()


def test_missing_biases_are_added_on_request():
    with pytest.raises(ValueError, match="BitFit finds no bias in this T5ForConditionalGeneration"):
        pf.get_peft_model(build("t5"), pf.BitFitConfig())
    with pytest.raises(
        ValueError, match="matches encoder.*SelfAttention.q, a Linear that has no bias; add_missing=True"
    ):
        pf.get_peft_model(build("t5"), pf.BitFitConfig(target_modules=["q"]))
    model = pf.get_peft_model(build("t5"), pf.BitFitConfig(add_missing=True)).eval()
    assert_same(logits(model), logits(build("t5")))
    linear = {n for n, m in build("t5").named_modules() if isinstance(m, nn.Linear) and n != "lm_head"}
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert names == {f"base_model.model.{n}.bitfit_bias.default" for n in linear}
    liven(model)
    assert (logits(model) - logits(build("t5"))).abs().max() > 1e-3


def test_by_names_and_rows():
    model = biased("bert", target_modules=["query", "LayerNorm"], exclude_modules=r".*\.1\..*")
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert names and all(".0." in n or "embeddings.LayerNorm" in n for n in names)
    mixed = logits(model, adapter_names=["default", "__base__", "default"])
    assert_same(mixed[[0, 2]], logits(model)[[0, 2]])
    assert_same(mixed[1], logits(build("bert"))[1])


def test_shared_biases_stay_shared():
    from tests.model.test_foreign_files import masked

    model = pf.get_peft_model(masked(), pf.BitFitConfig())
    names = [n for n, p in model.named_parameters() if p.requires_grad and "predictions" in n]
    assert names == [
        "base_model.model.cls.predictions.transform.dense.bitfit_bias.default",
        "base_model.model.cls.predictions.transform.LayerNorm.bitfit_bias.default",
        "base_model.model.cls.predictions.decoder.bitfit_bias.default",
    ]
    liven(model)
    assert (model(input_ids=IDS).logits - masked()(input_ids=IDS).logits).abs().max() > 1e-3


def test_one_set_of_biases_at_a_time():
    model = biased("bert")
    model.add_adapter("second", pf.BitFitConfig())
    with pytest.raises(ValueError, match="default and second each have a bias of one layer"):
        model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="the BitFit adapter 'default' has copies of the same biases"):
        model.add_adapter("lora", pf.LoraConfig(target_modules=["query"], bias="all"))
    assert list(model.peft_config) == ["default", "second"]
    lora = pf.get_peft_model(build("bert"), pf.LoraConfig(target_modules=["query"], bias="all"))
    with pytest.raises(ValueError, match="adapter 'default' trains the same biases in place"):
        lora.add_adapter("bitfit", pf.BitFitConfig())
