"""IA3 against PEFT: parameters, values, gradients, files both ways, merging, default targets."""

import copy
import json

import peft
import pytest
import torch
from peft.utils import constants
from safetensors.torch import load_file

import pypeft_fast as pf
from pypeft_fast.model.ia3 import DEFAULT_FEEDFORWARD, DEFAULT_TARGETS
from tests.model.zoo import assert_same, build, generated, liven, logits, plain

TARGETS = {
    "llama": (["q_proj", "down_proj"], ["down_proj"]),
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "bert": (["query", "output.dense"], ["output.dense"]),
    "t5": (["k", "wo"], ["wo"]),
}
VARIANTS = {
    "given": {},
    "default": dict(target_modules=None, feedforward_modules=None),
    "no feedforward": dict(feedforward_modules=[]),
    "expressions": dict(
        target_modules=r".*(q_proj|down_proj|c_attn|c_proj|query|dense|\.k|wo)",
        feedforward_modules=r".*(down_proj|mlp.c_proj|[01].output.dense|wo)",
    ),
    "saved module": dict(modules_to_save=["lm_head", "classifier"]),
    "normal start": dict(init_ia3_weights=False),
    "excluded": dict(exclude_modules=r".*\.1\..*"),
}
# As for LoRA: PEFT itself saves T5's lm_head, which is its embedding, twice.
CASES = [(kind, name) for kind in TARGETS for name in VARIANTS if (kind, name) != ("t5", "saved module")]


def scaled(library, kind, seed=1, **options):
    target, feedforward = TARGETS[kind]
    config = dict(target_modules=target, feedforward_modules=feedforward) | copy.deepcopy(options)
    model = build(kind)
    torch.manual_seed(seed)
    model = library.get_peft_model(model, library.IA3Config(**config))
    liven(model, seed)
    return model.eval()


def trained(model):
    return {plain(n): p for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("kind,name", CASES)
def test_same_parameters_logits_gradients_and_files(kind, name, tmp_path):
    ours, theirs = (scaled(library, kind, **VARIANTS[name]) for library in (pf, peft))
    mine, yours = trained(ours), trained(theirs)
    assert set(mine) == set(yours) and all(torch.equal(p, yours[n]) for n, p in mine.items())
    saved = "modules_to_save." if name == "saved module" else "ia3_l."
    assert all(".ia3_l." in n or saved in n for n in mine)
    outputs = [logits(model) for model in (ours, theirs)]
    assert_same(*outputs)
    assert (outputs[0] - logits(build(kind))).abs().max() > 1e-3
    for output in outputs:
        output.square().mean().backward()
    for n, p in mine.items():
        assert (p.grad is None) == (yours[n].grad is None)
        if p.grad is not None:
            grad = yours[n].grad
            torch.testing.assert_close(p.grad, grad, rtol=0, atol=1e-6 + 1e-4 * grad.abs().max().item())
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    files = [load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs")]
    assert set(files[0]) == set(files[1])
    configs = [json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs")]
    assert configs[0].keys() == configs[1].keys()
    unordered = [{k: sorted(v) if isinstance(v, list) else v for k, v in c.items()} for c in configs]
    assert {k for k in unordered[0] if unordered[0][k] != unordered[1][k]} <= {"peft_version"}
    for reader, folder in ((pf, "theirs"), (pf, "ours"), (peft, "ours")):
        assert_same(logits(reader.PeftModel.from_pretrained(build(kind), tmp_path / folder).eval()), outputs[0])


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("kind", list(TARGETS))
def test_merging_agrees_with_peft_and_is_undone_exactly(kind):
    ours, theirs = scaled(pf, kind), scaled(peft, kind)
    expected, before = logits(ours), {k: v.clone() for k, v in ours.state_dict().items()}
    ours.merge_adapter(safe_merge=True)
    assert_same(logits(ours), expected)
    assert any(not torch.equal(v, before[k]) for k, v in ours.state_dict().items())
    ours.unmerge_adapter()
    assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items())
    merged, other = ours.merge_and_unload(), theirs.merge_and_unload()
    assert_same(logits(merged), logits(other))
    assert [type(m) for m in merged.modules()] == [type(m) for m in build(kind).modules()]


def test_default_targets_are_pefts():
    assert DEFAULT_TARGETS == constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
    assert DEFAULT_FEEDFORWARD == constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_generate_agrees_with_peft(kind):
    tokens, scores = generated(scaled(pf, kind))
    expected = generated(scaled(peft, kind))
    assert torch.equal(tokens, expected[0])
    torch.testing.assert_close(scores, expected[1], rtol=1e-5, atol=1e-5)
    assert (scores[0] - generated(build(kind))[1][0]).abs().max() > 1e-3


@pytest.mark.parametrize("target", [["q_proj"], ["mlp.down_proj", "q_proj"], "all-linear"], ids=str)
def test_the_usual_feedforward_modules_need_not_be_among_the_targets(target, tmp_path):
    # PEFT writes them as names then, and neither library could read that file.
    ours, theirs = (scaled(lib, "llama", target_modules=target, feedforward_modules=None) for lib in (pf, peft))
    assert_same(logits(ours), logits(theirs))
    ours.save_pretrained(tmp_path)
    for library in (pf, peft):
        assert_same(logits(library.PeftModel.from_pretrained(build("llama"), tmp_path).eval()), logits(ours))


def test_feedforward_modules_without_effect_are_mentioned():
    config = pf.IA3Config(target_modules=["q_proj"], feedforward_modules=".*down_proj")
    with pytest.warns(UserWarning, match=r"feedforward_modules='\.\*down_proj' match no adapted layer"):
        pf.get_peft_model(build("llama"), config)


def test_the_fused_op_runs():
    model = scaled(pf, "llama")
    with pf.recording() as ran:
        logits(model).sum().backward()
    names = [op for op, _ in ran]
    assert names.count("ia3_linear") == 4 and names.count("ia3_dx_dl") == 4


def test_bad_configs():
    with pytest.raises(ValueError, match=r"feedforward_modules names 'wo', which target_modules=\['k'\] does not"):
        pf.IA3Config(target_modules=["k"], feedforward_modules=["wo"])
    with pytest.raises(TypeError, match="init_ia3_weights=1 must be True or False"):
        pf.IA3Config(init_ia3_weights=1)
    with pytest.raises(TypeError, match="rank"):
        pf.IA3Config(rank=3)
    with pytest.raises(ValueError, match="unknown field r=3; IA3Config has"):
        pf.get_peft_config(dict(peft_type="IA3", r=3))
    with pytest.raises(ValueError, match="feedforward_modules=None: there is no default for the model type None"):
        pf.get_peft_model(torch.nn.Sequential(torch.nn.Linear(2, 2)), pf.IA3Config(target_modules=["0"]))
