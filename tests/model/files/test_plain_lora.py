"""Files of plain LoRA need no dry run: the tensors that PEFT creates are known, and are those of the dry run."""

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pypeft_fast.model.files import mixin, snapshot
from pypeft_fast.model.files.dry_run import rehearse
from pypeft_fast.model.files.initial_values import without_initial_values
from pypeft_fast.model.files.plain_lora import place_of_plain_lora
from tests.model.files.made import PeftModel, lora_A, rewrite
from tests.model.zoo import build

TWO = ["q_proj", "down_proj"]
PLAIN = {
    "usual": dict(target_modules=TWO),
    "a task": dict(target_modules=TWO, task_type="CAUSAL_LM"),
    "ranks": dict(target_modules=TWO, rank_pattern={"layers.0.self_attn.q_proj": 2, "down_proj": 3}, use_rslora=True),
    "a part": dict(target_modules=TWO, exclude_modules=["layers.1.self_attn.q_proj"], layers_to_transform=[0, 1]),
    "whole names": dict(target_modules=["model.layers.0.self_attn.q_proj"]),
    "all linear": dict(target_modules="all-linear"),  # the file lists the layers
}
OTHER = {
    "dora": dict(target_modules=TWO, use_dora=True),
    "a pattern": dict(target_modules=r".*q_proj"),
    "biases": dict(target_modules=TWO, lora_bias=True),
    "trained biases": dict(target_modules=TWO, bias="lora_only"),
    "a trained head": dict(target_modules=TWO, modules_to_save=["lm_head"]),
    "an embedding": dict(target_modules=["embed_tokens", "q_proj"]),
    "tokens": dict(target_modules=TWO, trainable_token_indices=[1]),
    "another start": dict(target_modules=TWO, init_lora_weights="olora"),
}


def saved(folder, options):
    torch.manual_seed(0)
    PeftModel(build("llama"), peft.LoraConfig(r=4, **options)).save_pretrained(folder)
    return folder


@pytest.fixture
def rehearsals(monkeypatch):
    calls = []
    monkeypatch.setattr(mixin, "rehearse", lambda *a, **options: calls.append(1) or rehearse(*a, **options))
    return calls


@pytest.mark.parametrize("kind", [*PLAIN, *OTHER])
def test_only_plain_lora_has_no_dry_run(kind, tmp_path, rehearsals, monkeypatch):
    monkeypatch.setattr(snapshot, "LARGE", 1)  # PEFT's initial values are not drawn
    saved(tmp_path, (PLAIN | OTHER)[kind])
    loaded = PeftModel.from_pretrained(build("llama"), tmp_path)
    theirs = peft.PeftModel.from_pretrained(build("llama"), tmp_path)
    assert len(rehearsals) == (kind in OTHER)
    ours, theirs = dict(loaded.named_parameters()), dict(theirs.named_parameters())
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours if ".lora_" in n)


@pytest.mark.parametrize("kind", PLAIN)
def test_the_tensors_are_those_of_the_dry_run(kind, tmp_path):
    config = peft.PeftConfig.from_pretrained(saved(tmp_path, PLAIN[kind]))
    tensors, base = load_file(tmp_path / "adapter_model.safetensors"), build("llama")
    found, expected = place_of_plain_lora(base, config, "default", tensors, {}), rehearse(base, config, "default")
    shapes = [{name: tensor.shape for name, tensor in place.tensors.items()} for place in (found, expected)]
    assert shapes[0] == shapes[1] != {}


def other_layer(base):
    base.model.layers[0].self_attn.q_proj = nn.Sequential(base.model.layers[0].self_attn.q_proj)


def gone(base):
    for layer in base.model.layers:
        layer.mlp.down_proj = nn.Identity()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: rewrite(folder, lambda t: t.pop(lora_A(t)) is None),
        lambda folder: rewrite(folder, lambda t: t | {lora_A(t): t[lora_A(t)][:2].clone()}),
        lambda folder: rewrite(folder, lambda t: t | {"base_model.model.x.lora_A.weight": torch.ones(1)}),
    ],
)
def test_a_file_that_does_not_fit_has_a_dry_run_and_is_refused(change, tmp_path, rehearsals):
    change(saved(tmp_path, PLAIN["usual"]))
    with pytest.raises(ValueError, match="does not fit|has no |no place for"):
        PeftModel.from_pretrained(build("llama"), tmp_path)
    assert rehearsals


@pytest.mark.parametrize("change", [other_layer, gone])
def test_a_base_with_other_layers_has_a_dry_run(change, tmp_path, rehearsals):
    base = build("llama")
    change(base)
    with pytest.raises(ValueError):
        PeftModel.from_pretrained(base, saved(tmp_path, PLAIN["usual"]))
    assert rehearsals


@pytest.mark.parametrize("kind", PLAIN)
def test_no_initial_values_are_drawn_that_the_file_replaces(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "LARGE", 1)
    saved(tmp_path, PLAIN[kind])
    base = build("llama")
    before = torch.get_rng_state()
    loaded = PeftModel.from_pretrained(base, tmp_path)
    loaded.load_adapter(tmp_path, "second")
    assert torch.equal(torch.get_rng_state(), before)
    torch.nn.Linear(4, 4)
    assert not torch.equal(torch.get_rng_state(), before)  # after the block they are drawn again


def test_values_that_nothing_replaces_are_drawn_at_the_end():
    with without_initial_values():
        kept, replaced = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        with torch.no_grad():
            kept.weight.fill_(float("nan")), replaced.weight.fill_(3.0), replaced.bias.fill_(3.0)
            kept.reset_parameters()
    assert (kept.weight.abs() <= 0.5).all() and kept.weight.any()
    assert (replaced.weight == 3).all() and (replaced.bias == 3).all()


def test_from_pretrained_on_a_model_that_has_adapters_is_refused_where_names_do_not_fit(tmp_path):
    saved(tmp_path, PLAIN["usual"])
    model = PeftModel.from_pretrained(build("llama"), tmp_path)
    before = list(model.state_dict())
    with pytest.raises(ValueError, match="has no base_model.model.base_model"):
        PeftModel.from_pretrained(model, tmp_path, adapter_name="second")
    assert list(model.state_dict()) == before and list(model.peft_config) == ["default"]


def test_a_large_adapter_is_loaded_in_inference_mode(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "LARGE", 1)
    saved(tmp_path, PLAIN["usual"])
    with torch.inference_mode():
        loaded = PeftModel.from_pretrained(build("llama"), tmp_path)
    held = load_file(tmp_path / "adapter_model.safetensors")
    values = peft.get_peft_model_state_dict(loaded)
    assert held and all(torch.equal(values[name], tensor) for name, tensor in held.items())
