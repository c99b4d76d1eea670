"""The same adapter in PEFT and on our layers: values, gradients, files in both directions, merging, on four models."""

import copy
import json

import peft
import pytest
import torch
from safetensors.torch import load_file

import pypeft_fast as pf
from tests.model.zoo import (
    IDS,
    TARGETS,
    adapted,
    assert_as_exact,
    assert_fused,
    assert_same,
    build,
    generated,
    liven,
    logits,
    pair,
)

KINDS = list(TARGETS)
VARIANTS = {
    "plain": {},
    "all-linear": dict(target_modules="all-linear"),
    "regex": dict(target_modules=r".*(q_proj|c_attn|query|SelfAttention\.q)"),
    "default targets": dict(target_modules=None),
    "rslora": dict(use_rslora=True),
    "dora": dict(use_dora=True),
    "dropout": dict(lora_dropout=0.3),
    "patterns": dict(
        rank_pattern={"c_attn": 7, "q_proj": 7, "query": 7, "q": 7}, alpha_pattern={r"1\..*": 3, "c_proj": 5}
    ),
    "exclude": dict(exclude_modules=r".*\.1\..*"),
    "exclude list": dict(exclude_modules=["down_proj", "c_proj", "dense", "wo"]),
    "one layer": dict(layers_to_transform=1),
    "layers by pattern": dict(layers_to_transform=[0], layers_pattern=["layers", "h", "layer", "block"]),
    "bias all": dict(bias="all"),
    "bias lora_only": dict(bias="lora_only"),
    "saved module": dict(modules_to_save=["lm_head", "classifier"]),
    **{f"init {how}": dict(init_lora_weights=how) for how in (False, "gaussian", "orthogonal", "pissa", "olora")},
}
# Left out because PEFT fails: its olora factorises the weight of a Conv1D without a transpose.
BROKEN_IN_PEFT = {("gpt2", "init olora")}
CASES = [(kind, name) for kind in KINDS for name in VARIANTS if (kind, name) not in BROKEN_IN_PEFT]


@pytest.mark.parametrize("kind,name", CASES)
def test_same_parameters_logits_and_gradients(kind, name):
    ours, theirs = pair(kind, **VARIANTS[name])
    trained = [
        dict((n.replace(".base_layer.", "."), p) for n, p in m.named_parameters() if p.requires_grad)
        for m in (ours, theirs)
    ]
    assert set(trained[0]) == set(trained[1]) and trained[0]
    for n, p in trained[0].items():
        torch.testing.assert_close(p, trained[1][n], rtol=1e-5, atol=1e-6)
    assert_as_exact(logits(ours), theirs)
    assert (logits(ours) - logits(build(kind))).abs().max() > 1e-3
    for model in (ours, theirs):
        logits(model).square().mean().backward()
    for n, p in trained[0].items():
        if trained[1][n].grad is None:
            assert p.grad is None
        else:
            grad = trained[1][n].grad
            torch.testing.assert_close(p.grad, grad, rtol=0, atol=1e-6 + 1e-4 * grad.abs().max().item())
    assert all(p.grad is None for p in ours.parameters() if not p.requires_grad)
    assert_fused(ours)


@pytest.mark.parametrize("kind,name", CASES)
def test_files_of_either_load_in_the_other(kind, name, tmp_path):
    ours, theirs = pair(kind, **VARIANTS[name])
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    mine, yours = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    assert set(mine) == set(yours)
    for key in mine:
        torch.testing.assert_close(mine[key], yours[key], rtol=1e-5, atol=1e-6)
    configs = [json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs")]
    assert [_sorted(c) for c in configs[:1]] == [_sorted(c) for c in configs[1:]]
    expected = logits(theirs)
    for folder in ("theirs", "ours"):
        model = pf.PeftModel.from_pretrained(build(kind), tmp_path / folder).eval()
        assert_as_exact(logits(model), theirs)
        assert_fused(model)
    assert_same(logits(peft.PeftModel.from_pretrained(build(kind), tmp_path / "ours").eval()), expected)


def _sorted(config):
    """The config with sorted lists, because PEFT writes its sets in an arbitrary order."""
    return {key: sorted(value) if isinstance(value, list) else value for key, value in config.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["plain", "dora"])
def test_merge_and_unload(kind, method):
    ours, theirs = pair(kind, **VARIANTS[method])
    expected = logits(ours)
    assert_fused(ours)
    merged = ours.merge_and_unload()
    assert [type(m) for m in merged.modules()] == [type(m) for m in build(kind).modules()]
    assert_same(logits(merged), expected)
    assert_same(logits(merged), logits(theirs.merge_and_unload()))
    assert merged.state_dict().keys() == build(kind).state_dict().keys()


@pytest.mark.parametrize("kind", KINDS)  # GPT-2's layers are Conv1D, the others' nn.Linear
@pytest.mark.parametrize("method", ["plain", "dora", "bias all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merge_is_undone_exactly(kind, method, dtype):
    """PEFT subtracts the update that it has added, which changes a weight in half precision."""
    model = adapted(pf, kind, dtype=dtype, **VARIANTS[method])
    before, expected = {k: v.clone() for k, v in model.state_dict().items()}, logits(model)
    assert_fused(model)
    for safe in (True, False):
        model.merge_adapter(safe_merge=safe)
        changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
        assert changed == {f"{name}.base_layer.weight" for name in pf.fuse(model).fused}
        error = (logits(model) - expected).abs().max()
        assert error < 40 * torch.finfo(dtype).eps * expected.abs().max()
        model.unmerge_adapter()
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert torch.equal(logits(model), expected)
    model.merge_adapter()
    model.unmerge_adapter()
    unloaded, original = model.unload(), build(kind).to(dtype)
    if method != "bias all":  # "bias all" trains the biases in place
        assert all(torch.equal(v, original.state_dict()[k]) for k, v in unloaded.state_dict().items())
        with torch.no_grad():  # if a weight requires grad, attention uses another kernel
            assert torch.equal(logits(unloaded), logits(original))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_merged_weight_is_rounded_once(kind, dtype):
    model = adapted(pf, kind, dtype=dtype)
    layer = model.get_submodule(pf.fuse(model).fused[0])
    A, B = (part["default"].weight.double() for part in (layer.lora_A, layer.lora_B))
    update = layer.scaling["default"] * B @ A
    exact = layer.base_layer.weight.double() + (update.t() if kind == "gpt2" else update)
    model.merge_adapter()
    error = (layer.base_layer.weight.double() - exact).abs()
    assert (error <= 0.501 * torch.finfo(dtype).eps * exact.abs() + 1e-7).all()


def test_several_adapters_switch_as_in_peft(tmp_path):
    models = []
    for library in (pf, peft):
        model = adapted(library, "llama")
        model.add_adapter("second", library.LoraConfig(r=3, lora_alpha=2, target_modules=["k_proj", "down_proj"]))
        outputs = [logits(model)]
        model.set_adapter("second")
        liven(model, 5, "second")
        outputs.append(logits(model))
        model.base_model.set_adapter(["default", "second"])
        outputs.append(logits(model))
        with model.disable_adapter():
            outputs.append(logits(model))
        model.set_adapter("default")
        trainable = {n for n, p in model.named_parameters() if p.requires_grad}
        model.save_pretrained(tmp_path / library.__name__)
        models.append((outputs, trainable))
        if library is pf:
            assert_fused(model)
    (ours, our_names), (theirs, their_names) = models
    for a, b in zip(ours, theirs, strict=True):
        assert_same(a, b)
    assert our_names == their_names and torch.equal(ours[3], logits(build("llama")))
    for path in ("adapter_model.safetensors", "second/adapter_model.safetensors"):
        a, b = (load_file(tmp_path / name / path) for name in ("pypeft_fast", "peft"))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    model = pf.PeftModel.from_pretrained(build("llama"), tmp_path / "peft")
    model.load_adapter(tmp_path / "peft" / "second", "other")
    assert_same(logits(model), ours[0])
    model.delete_adapter("default")
    assert model.active_adapter == "other" and list(model.peft_config) == ["other"]
    assert_same(logits(model), ours[1])
    assert not any("default" in name for name in model.state_dict())
    assert_fused(model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixed_batch_gives_each_row_its_adapter(kind):
    saved, models = dict(modules_to_save=["classifier"] if kind == "bert" else None), []
    for library in (pf, peft):
        model = adapted(library, kind, **saved)
        model.add_adapter("second", library.LoraConfig(r=2, target_modules=TARGETS[kind], **saved))
        model.set_adapter("second")
        liven(model, 9, "second")
        models.append(model)
    model, theirs = models
    second = logits(model)
    for each in models:
        each.set_adapter("default")
    names = ["second", "__base__", "default"]
    mixed = logits(model, adapter_names=names)
    assert_same(mixed, logits(theirs, adapter_names=names))
    assert_same(mixed[0], second[0])
    assert_same(mixed[1], logits(build(kind))[1])
    assert_same(mixed[2], logits(model)[2])
    assert (mixed[0] - mixed[2]).abs().max() > 1e-3
    assert_fused(model)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("name", ["plain", "dora"])
def test_generate_agrees_with_peft(kind, name):
    """Tokens equal those of PEFT. The error of the logits to float64 is at most twice that of PEFT plus an ulp."""
    ours, theirs = pair(kind, **VARIANTS[name])
    tokens, scores = generated(theirs)
    expected = generated(copy.deepcopy(theirs).double())[1]
    bound = 2 * (scores - expected).abs().max() + torch.finfo(scores.dtype).eps * expected.abs().max()
    for options in ({}, {"use_cache": False}):
        found = generated(ours, **options)
        assert torch.equal(tokens, found[0]) and (found[1] - expected).abs().max() <= bound
    assert (scores[0] - generated(build(kind))[1][0]).abs().max() > 1e-3
    assert_fused(ours)


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_agrees_with_peft_and_takes_adapter_names(beams):
    ours, theirs = pair("llama")
    options = dict(
        input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=6, do_sample=False, pad_token_id=0
    )
    options["num_beams"] = beams
    base = build("llama").generate(**options)
    one = ours.generate(**options)
    assert torch.equal(one, theirs.generate(**options)) and not torch.equal(one, base)
    mixed = ours.generate(**options, adapter_names=["__base__", "default", "__base__"])
    width = min(mixed.shape[1], base.shape[1], one.shape[1])
    assert torch.equal(mixed[[0, 2], :width], base[[0, 2], :width]) and torch.equal(mixed[1, :width], one[1, :width])
    assert_fused(ours)


@pytest.mark.parametrize("kind,task", [("bert", "SEQ_CLS"), ("llama", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trainable_parameters_line(kind, task, dtype, capsys):
    lines = []
    for library in (pf, peft):
        config = library.LoraConfig(r=4, target_modules=TARGETS[kind], task_type=task)
        model = library.get_peft_model(build(kind).to(dtype), config)
        model.print_trainable_parameters()
        lines.append((capsys.readouterr().out, {(n, p.dtype) for n, p in model.named_parameters() if p.requires_grad}))
    assert lines[0] == lines[1] and lines[0][0].startswith("trainable params: ")


def test_half_precision_adapters_follow_autocast_adapter_dtype():
    config = pf.LoraConfig(r=4, target_modules=["q_proj"])
    for cast, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        model = pf.get_peft_model(build("llama").bfloat16(), copy.deepcopy(config), autocast_adapter_dtype=cast)
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {dtype}
        assert logits(model).dtype == torch.bfloat16
        assert_fused(model)
