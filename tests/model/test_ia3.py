"""IA3 on our layers compared with PEFT: parameters, values, gradients, files, merging, generation, mixed rows."""

import copy
import json

import peft
import pytest
import torch
from safetensors.torch import load_file

import pypeft_fast as pf
from tests.model.zoo import assert_fused, assert_same, build, generated, liven, logits, plain

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
CASES = [(kind, name) for kind in TARGETS for name in VARIANTS]


def scaled(library, kind, seed=1, dtype=torch.float32, **options):
    target, feedforward = TARGETS[kind]
    config = dict(target_modules=target, feedforward_modules=feedforward) | copy.deepcopy(options)
    model = build(kind).to(dtype)
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
    assert_fused(ours)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    files = [load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs")]
    assert set(files[0]) == set(files[1])
    configs = [json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs")]
    assert configs[0].keys() == configs[1].keys()
    unordered = [{k: sorted(v) if isinstance(v, list) else v for k, v in c.items()} for c in configs]
    assert unordered[0] == unordered[1]
    for reader, folder in ((pf, "theirs"), (pf, "ours"), (peft, "ours")):
        assert_same(logits(reader.PeftModel.from_pretrained(build(kind), tmp_path / folder).eval()), outputs[0])


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("kind", list(TARGETS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merging_agrees_with_peft_and_is_undone_exactly(kind, dtype):
    ours, theirs = (scaled(library, kind, dtype=dtype) for library in (pf, peft))
    expected, before = logits(ours), {k: v.clone() for k, v in ours.state_dict().items()}
    assert_fused(ours)
    for _ in range(2):
        ours.merge_adapter(safe_merge=True)
        error = (logits(ours) - expected).abs().max()
        assert error < 40 * torch.finfo(dtype).eps * expected.abs().max()
        changed = {k for k, v in ours.state_dict().items() if not torch.equal(v, before[k])}
        assert {f"{name}.base_layer.weight" for name in pf.fuse(ours).fused} <= changed
        ours.unmerge_adapter()
        assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items())
    merged, other = ours.merge_and_unload(), theirs.merge_and_unload()
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in merged.state_dict().items())
    assert [type(m) for m in merged.modules()] == [type(m) for m in build(kind).modules()]


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_generate_agrees_with_peft(kind):
    ours = scaled(pf, kind)
    tokens, scores = generated(ours)
    assert_fused(ours)
    expected = generated(scaled(peft, kind))
    assert torch.equal(tokens, expected[0])
    torch.testing.assert_close(scores, expected[1], rtol=1e-5, atol=1e-5)
    assert (scores[0] - generated(build(kind))[1][0]).abs().max() > 1e-3


def test_the_fused_op_runs():
    model = scaled(pf, "llama")
    with pf.recording() as ran:
        logits(model).sum().backward()
    names = [op for op, _ in ran]
    assert names.count("ia3_linear") == 4 and names.count("ia3_dx_dl") == 4


def test_a_mixed_batch_gives_each_row_its_adapter():
    """PEFT does not support adapter_names for IA3."""
    target, feedforward = TARGETS["llama"]
    model = scaled(pf, "llama")
    model.add_adapter("second", pf.IA3Config(target_modules=target, feedforward_modules=feedforward))
    model.set_adapter("second")
    liven(model, 9)
    second = logits(model)
    model.set_adapter("default")
    mixed = logits(model, adapter_names=["second", "__base__", "default"])
    for row, expected in enumerate((second, logits(build("llama")), logits(model))):
        assert_same(mixed[row], expected[row])
    assert (mixed[0] - logits(model)[0]).abs().max() > 1e-3
