"""The counts of a report where the fused path is not used, and the files that are pushed to a hub."""

from pathlib import Path

import peft
import pytest
import torch

import pypeft_fast as pf
from tests.model.zoo import adapted, assert_same, build, logits


def _waiting() -> set:
    """The global module registration hooks. `pf.nn` keeps one after its first layer was created."""
    return set(torch.nn.modules.module._global_module_registration_hooks)


def test_register_joins_the_gated_module_as_fuse_does():
    before = _waiting()
    config = pf.register(peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    torch.manual_seed(1)
    model = peft.get_peft_model(build("llama"), config).eval()
    expected = logits(model)
    report = pf.fuse(model)
    assert len(report.gated) == 2 and report.gated_calls() == {"fused": 2} and report.calls() == {"fused": 4}
    pf.unfuse(model)
    assert_same(logits(model), expected)
    assert _waiting() == before  # no hook is left


def test_a_layer_that_finds_no_place_leaves_no_hook():
    before = _waiting()
    config = pf.register(peft.LoraConfig(target_modules=["0"]))
    for factory in set(config._custom_modules.values()):
        factory(torch.nn.Linear(4, 4), "default", config=config, r=8, lora_alpha=8)
    torch.nn.Sequential(torch.nn.Linear(2, 2))  # the registration of another module
    assert _waiting() == before


@pytest.mark.parametrize("where", ["down_proj", "act_fn"])
def test_a_gated_module_with_hooks_is_counted(where):
    model = adapted(pf, "llama")
    mlps = [layer.mlp for layer in model.get_base_model().model.layers]
    mlps[0].get_submodule(where).register_forward_hook(lambda *_: None)
    logits(model)
    counted = pf.fuse(model).gated_calls()
    assert counted == {"fused": 1, "down_proj or the activation has hooks or a forward of its own": 1}


def test_a_gated_module_that_is_left_is_named():
    model = adapted(peft, "llama")
    mlp = model.get_base_model().model.layers[1].mlp
    mlp.forward = lambda x: type(mlp).forward(mlp, x)
    report = pf.fuse(model)
    assert len(report.gated) == 1
    (name,) = report.gated_left
    assert name.endswith("layers.1.mlp") and "forward of its own" in report.gated_left[name]
    assert "1 gated activations left: " in str(report)
    other = build("llama")
    other.model.layers[0].mlp.act_fn = torch.nn.GELU()
    model = pf.get_peft_model(other, pf.LoraConfig(target_modules=["down_proj"]))
    (reason,) = pf.fuse(model).gated_left.values()
    assert reason == "the activation is GELU, not SiLU"


def test_an_export_is_counted():
    model = pf.get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(8, 8)), pf.LoraConfig(target_modules=["0"], init_lora_weights=False)
    ).eval()
    x = torch.randn(2, 8)
    with torch.no_grad():
        exported = torch.export.export(model, (x,), strict=False).module()
        calls = pf.fuse(model).calls()
        assert sum(calls.values()) == 1  # the graph has one path
        assert_same(exported(x), model(x))


def test_push_to_hub_uploads_the_adapter_alone(monkeypatch):
    """The hub is replaced by functions that record the uploaded files."""
    from types import SimpleNamespace

    from transformers.utils import hub

    pushed = {}

    def upload(self, working_dir, *args, **kwargs):
        pushed.update({p.name: p.stat().st_size for p in Path(working_dir).rglob("*") if p.is_file()})

    def create_repo(repo_id, **kwargs):
        return SimpleNamespace(repo_id=repo_id)

    def card(repo_id, *args, **kwargs):
        return SimpleNamespace(save=lambda path: Path(path).write_text("a card"))

    model = adapted(pf, "llama")
    monkeypatch.setattr(type(model), "_upload_modified_files", upload)
    monkeypatch.setattr(hub, "hf_api", lambda: SimpleNamespace(create_repo=create_repo))
    monkeypatch.setattr(hub, "create_and_tag_model_card", card)
    model.push_to_hub("someone/adapter")
    assert set(pushed) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert pushed["adapter_model.safetensors"] < 0.2 * sum(p.numel() * 4 for p in model.parameters())
