"""pf.fuse on Hugging Face PEFT models: unchanged values and files, the ops that run, refusals, and pf.unfuse."""

import copy
import functools
import gc
import weakref

import peft
import pytest
import torch
from peft.utils import hotswap
from torch import nn
from torch.utils.checkpoint import checkpoint

import pypeft_fast as pf
from tests.device import DEVICE
from tests.interpreter import python
from tests.model import zoo

METHODS = {
    "lora": dict(),
    "rslora": dict(use_rslora=True, lora_dropout=0.1),
    "dora": dict(use_dora=True),
    "bias": dict(bias="lora_only"),
}


def ia3(kind="llama"):
    model = zoo.build(kind)
    down = {"llama": "down_proj", "gpt2": "c_proj"}[kind]
    config = peft.IA3Config(target_modules=[*zoo.TARGETS[kind]], feedforward_modules=[down])
    model = peft.get_peft_model(model, config)
    zoo.liven(model)
    return model.eval()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", zoo.TARGETS)
def test_a_fused_model_computes_the_same_and_keeps_its_parameters(kind, method):
    model = zoo.adapted(peft, kind, **METHODS[method])
    before, state = zoo.logits(model), {k: v for k, v in model.state_dict(keep_vars=True).items()}
    report = pf.fuse(model, strict=True)
    with pf.recording() as ran:
        zoo.assert_same(zoo.logits(model), before)
    assert (
        sum(op in ("lora_forward", "lora_linear") for op, _ in ran) == len(report.fused) == report.calls()["fused"] > 3
    )
    assert repr(model.get_submodule(report.fused[0])).startswith("lora.Linear(\n  fused\n  (base_layer): ")
    assert all(state[k] is v for k, v in model.state_dict(keep_vars=True).items()) and len(state) > 10
    assert isinstance(model.get_submodule(report.fused[0]), peft.tuners.lora.Linear)
    assert pf.unfuse(model) == len(report.fused) and pf.unfuse(model) == 0
    assert torch.equal(zoo.logits(model), before)
    assert type(model.get_submodule(report.fused[0])) is peft.tuners.lora.Linear


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_ia3(kind):
    model = ia3(kind)
    before, report = zoo.logits(model), pf.fuse(model, strict=True)
    with pf.recording() as ran:
        zoo.assert_same(zoo.logits(model), before)
    assert {op for op, _ in ran} == {"ia3_linear"} and report.calls() == {"fused": len(report.fused)}
    model.merge_adapter()
    zoo.assert_same(zoo.logits(model), before)
    assert report.calls() == {"fused": len(report.fused)}
    pf.unfuse(model)
    assert not hasattr(model.get_submodule(report.fused[0]), "_fused_calls")


@pytest.mark.parametrize("end", [lambda model: None, lambda model: model.unload()])
def test_a_report_keeps_no_weights_alive(end):
    model = zoo.adapted(peft, "llama")
    report = pf.fuse(model)
    adapter = weakref.ref(model.get_submodule(report.fused[0]).lora_A["default"].weight)
    zoo.logits(model)
    model = end(model)
    gc.collect()
    assert adapter() is None and report.calls() == {"fused": 4}


def test_a_report_is_usable_after_unfuse():
    model = zoo.adapted(peft, "llama")
    report = pf.fuse(model)
    zoo.logits(model)
    pf.unfuse(model)
    zoo.logits(model)
    assert report.calls() == {"fused": 4}


def test_fusing_again_fuses_layers_that_were_added_since():
    model = zoo.adapted(peft, "llama")
    first = pf.fuse(model)
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["up_proj", "q_proj"]))
    again = pf.fuse(model)
    assert set(again.fused) > set(first.fused) and not again.left
    assert "0 left to PEFT" in str(again)


def test_layers_that_cannot_be_fused_are_listed_and_not_changed():
    model = zoo.build("llama")
    config = peft.LoraConfig(target_modules=["q_proj", "embed_tokens"], alora_invocation_tokens=None)
    model = peft.get_peft_model(model, config)
    kinds = {name: type(m) for name, m in model.named_modules()}
    with pytest.raises(
        ValueError, match="1 of the adapter layers cannot be fused: .*embed_tokens: no fused op for peft"
    ):
        pf.fuse(model, strict=True)
    assert kinds == {name: type(m) for name, m in model.named_modules()}
    report = pf.fuse(model)
    (name,) = report.left
    assert name.endswith("embed_tokens") and len(report.fused) == 2
    assert "2 layers fused, 1 left to PEFT\n  1 left: no fused op for peft.tuners.lora.layer.Embedding" in str(report)


def test_a_refusal_names_each_reason_once():
    model = zoo.adapted(peft, "llama", lora_bias=True)
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    with pytest.raises(ValueError, match=rf"4 of the .* be fused: {name}: lora_bias=True \(and 3 more\)$"):
        pf.fuse(model, strict=True)


@pytest.mark.parametrize("what", ["fuse", "unfuse"])
def test_bad_models(what):
    function = getattr(pf, what)
    with pytest.raises(TypeError, match=f"{what}: model is a str, expected a torch.nn.Module"):
        function("adapter")
    with pytest.raises(ValueError, match="Linear has no adapter layer of Hugging Face PEFT; add an adapter$"):
        function(nn.Linear(2, 2))


def test_a_model_of_ours_is_fused_already_and_may_be_unfused():
    model = zoo.adapted(pf, "llama")
    expected, report = zoo.logits(model), pf.fuse(model, strict=True)
    assert report.calls() == {"fused": 4} and len(report.gated) == 2
    assert pf.unfuse(model) == 4
    with pf.recording() as ran:
        zoo.assert_same(zoo.logits(model), expected)
    assert not ran
    pf.fuse(model)
    assert torch.equal(zoo.logits(model), expected)


def test_peft_is_not_imported_unless_the_model_layer_is_asked_for():
    code = (
        "import sys, torch, pypeft_fast as pf\n"
        "layer = pf.nn.LoRALinear.from_linear(torch.nn.Linear(4, 4), r=2)\n"
        "layer(torch.ones(2, 4)).sum().backward()\n"
        "pf.lora_linear(torch.ones(2, 4), layer.weight, layer.lora_A, layer.lora_B)\n"
        "assert not {'peft', 'transformers'} & set(sys.modules)\n"
        "pf.fuse\n"
        "assert 'peft' in sys.modules"
    )
    python("-c", code, expect_success=True)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_register_builds_fused_layers(kind, tmp_path):
    config = peft.LoraConfig(r=4, target_modules=[*zoo.TARGETS[kind], {"llama": "embed_tokens", "gpt2": "wte"}[kind]])
    assert pf.register(config) is config
    torch.manual_seed(1)
    model = peft.get_peft_model(zoo.build(kind), config)
    torch.manual_seed(1)
    plain = peft.get_peft_model(zoo.build(kind), copy.deepcopy(config).__class__(**config_fields(config)))
    zoo.liven(model), zoo.liven(plain)
    fused = [m for m in model.modules() if type(m).__name__ == "FusedLinear"]
    assert len(fused) == sum(type(m) is peft.tuners.lora.Linear for m in plain.modules()) > 3
    zoo.assert_as_exact(zoo.logits(model.eval()), plain.eval())
    assert all(m._fused_calls == {"fused": 1} for m in fused)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(zoo.build(kind), tmp_path)
    assert not any(type(m).__name__ == "FusedLinear" for m in again.modules())
    zoo.assert_as_exact(zoo.logits(model), again.eval())
    with pytest.raises(TypeError, match="config is a peft.tuners.ia3.config.IA3Config, expected a peft.LoraConfig"):
        pf.register(peft.IA3Config())


def config_fields(config):
    return dict(r=config.r, target_modules=list(config.target_modules))


def test_files_load_in_our_own_model_and_back(tmp_path):
    model = zoo.adapted(peft, "llama")
    pf.fuse(model)
    model.save_pretrained(tmp_path / "theirs")
    ours = pf.PeftModel.from_pretrained(zoo.build("llama"), tmp_path / "theirs")
    zoo.assert_same(zoo.logits(ours), zoo.logits(model))
    ours.save_pretrained(tmp_path / "ours")
    back = peft.PeftModel.from_pretrained(zoo.build("llama"), tmp_path / "ours")
    pf.fuse(back)
    zoo.assert_same(zoo.logits(back), zoo.logits(model))


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_with_dropout(method, reentrant):
    model = zoo.adapted(peft, "llama", **METHODS[method] | dict(lora_dropout=0.3)).train()
    report = pf.fuse(model)
    grads = []
    for on in (False, True):
        if on:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(3)
        zoo.logits(model).square().mean().backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
        model.zero_grad()
    assert all(map(torch.equal, *grads)) and set(report.calls()) == {"fused"}


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_compiles_in_one_graph(method):
    if method == "ia3":
        config = peft.IA3Config(target_modules=["0", "2"], feedforward_modules=["2"])
    else:
        config = peft.LoraConfig(target_modules=["0", "2"], **METHODS[method] | dict(lora_dropout=0.1))
    model = peft.get_peft_model(nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 8)), config).train()
    zoo.liven(model)
    report, x, results = pf.fuse(model), torch.randn(5, 12), []
    for f in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        y = f(x)
        results.append((y, *torch.autograd.grad(y.square().mean(), [p for p in model.parameters() if p.requires_grad])))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    assert report.calls() == {"fused": 2}


def test_weights_written_through_data_are_used_at_once():
    """PEFT's hotswapping and merging write through .data, which changes no version counter."""
    model, other = (zoo.adapted(peft, "llama", seed=seed, use_dora=True) for seed in (1, 7))
    for parameter in other.parameters():
        parameter.data.mul_(1.25)
    pf.fuse(model)
    assert not torch.allclose(zoo.logits(model), zoo.logits(other), atol=1e-2)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        mine.data.copy_(theirs.data)
    pf.fuse(other)
    assert torch.equal(zoo.logits(model), zoo.logits(other))


def test_a_compiled_hotswap_changes_rank_and_scaling(tmp_path):
    torch.manual_seed(0)
    base, x = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 8)), torch.randn(5, 12)
    models = []
    for r, alpha in ((4, 8), (2, 9)):
        config = peft.LoraConfig(r=r, lora_alpha=alpha, target_modules=["0", "2"], init_lora_weights=False)
        models.append(peft.get_peft_model(copy.deepcopy(base), config).eval())
    model, other = models
    other.save_pretrained(tmp_path)
    before, report = model(x), pf.fuse(model)
    hotswap.prepare_model_for_compiled_hotswap(model, target_rank=8)
    zoo.assert_same(model(x), before)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    compiled(x)
    hotswap.hotswap_adapter(model, str(tmp_path), adapter_name="default", torch_device=DEVICE)
    with torch._dynamo.config.patch(error_on_recompile=True):
        zoo.assert_same(compiled(x), other(x))
    assert report.calls() == {"fused": 2} and not torch.allclose(before, other(x), atol=1e-2)


def test_a_half_precision_base_saves_no_wide_copy_of_x():
    """float32 adapters over a bfloat16 base are the default of PEFT."""
    linear = nn.Linear(64, 48, dtype=torch.bfloat16)
    config = peft.LoraConfig(r=4, lora_dropout=0.1, target_modules=["0"])
    model = peft.get_peft_model(nn.Sequential(linear), config)
    pf.fuse(model)
    x, kept = torch.randn(32, 64, dtype=torch.bfloat16, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = model(x)
    known = {x.data_ptr(), *(p.data_ptr() for p in model.parameters())}
    shapes = sorted((tuple(t.shape), t.dtype) for t in kept if t.data_ptr() not in known)
    assert shapes == [((32, 4), torch.float32), ((32, 8), torch.uint8)]
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and x.grad is not None


def test_merging_with_dora_is_noticed():
    """PEFT merges through .data, which changes no version counter."""
    model = zoo.adapted(peft, "llama", use_dora=True)
    pf.fuse(model)
    before = zoo.logits(model)
    model.merge_adapter()
    zoo.assert_same(zoo.logits(model), before)
    model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj").base_layer.weight.data.mul_(1.5)
    model.unmerge_adapter()
    after = zoo.logits(model)
    pf.unfuse(model)
    zoo.assert_same(zoo.logits(model), after)


def test_checkpointed_function_outside_a_module():
    model = zoo.adapted(peft, "llama", lora_dropout=0.5).train()
    report = pf.fuse(model)
    layer, x = model.get_submodule(report.fused[0]), torch.randn(3, 32, requires_grad=True)
    grads = []
    for run in (lambda f, x: f(x), functools.partial(checkpoint, use_reentrant=False)):
        torch.manual_seed(1)
        grads.append(torch.autograd.grad(run(layer, x).sum(), x)[0])
    assert torch.equal(*grads)


def test_attention_with_an_adapter_is_pefts_own():
    """In each forward PEFT merges into the weights that nn.MultiheadAttention reads, in a way that autograd sees."""

    def attention(library):
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"attention": torch.nn.MultiheadAttention(16, 2)})
        config = library.LoraConfig(target_modules=["attention"], init_lora_weights=False)
        return library.get_peft_model(model, config).eval()

    x, outcomes = torch.randn(3, 2, 16), []
    for library in (peft, pf):
        model = attention(library)
        layer = model.base_model.model.attention
        y = layer(x, x, x)[0]
        y.square().sum().backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        outcomes.append((y, grads))
    (theirs, wanted), (ours, grads) = outcomes
    zoo.assert_same(ours, theirs)
    assert grads.keys() == wanted.keys() and len(grads) == 4
    for name, grad in grads.items():
        torch.testing.assert_close(grad, wanted[name], rtol=1e-4, atol=1e-5)
    assert set(pf.fuse(model).left) == {"base_model.model.attention", "base_model.model.attention.base_layer.out_proj"}
