"""Gated feedforward modules with the activation fused into down_proj: which modules, values, gradients, and unfuse."""

import copy
import io
import pickle

import peft
import pytest
import torch
import transformers as tf
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP

import pypeft_fast as pf
from pypeft_fast.model.joints import gated_mlp
from tests.model import zoo

DOWN = ["gate_proj", "up_proj", "down_proj"]


def mlps(model):
    return [m for m in model.modules() if isinstance(m, LlamaMLP)]


def ours(**options):
    return zoo.adapted(pf, "llama", **options).train()


def theirs(**options):
    model = zoo.adapted(peft, "llama", **options).train()
    pf.fuse(model)
    return model


LIBRARIES = {"ours": ours, "peft": theirs}


def both(make, **options):
    """(fused model, the same model with the original forward of each module)"""
    fused, plain = make(**copy.deepcopy(options)), make(**copy.deepcopy(options))
    gated_mlp.release(plain)
    assert all(type(m) is LlamaMLP for m in mlps(plain))
    return fused, plain


def training_step(model, seed=3):
    """(logits, {name: gradient}, state of the generator afterwards)."""
    torch.manual_seed(seed)
    logits = zoo.logits(model)
    logits.square().mean().backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return logits.detach(), grads, torch.get_rng_state()


def gated_calls(model, *args, **kwargs):
    with pf.recording() as ran:
        zoo.logits(model, *args, **kwargs)
    return sum(op == "swiglu" for op, _ in ran)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("targets", [["down_proj"], [*DOWN, "q_proj"]], ids=str)
def test_logits_gradients_and_masks_are_those_of_the_modules_own_forward(library, p, targets):
    fused, plain = both(LIBRARIES[library], lora_dropout=p, target_modules=targets)
    assert gated_calls(fused) == 2 and gated_calls(plain) == 0
    (logits, grads, state), (expected, wanted, left) = training_step(fused), training_step(plain)
    zoo.assert_same(logits, expected)
    assert torch.equal(state, left) and grads.keys() == wanted.keys() and len(grads) == 4 * len(targets)
    for name, grad in grads.items():
        assert wanted[name].abs().max() > 0
        torch.testing.assert_close(grad, wanted[name], rtol=1e-3, atol=1e-4 * wanted[name].abs().max().item())


@pytest.mark.parametrize("library", LIBRARIES)
def test_logits_and_gradients_are_peft_s(library):
    fused, unfused = LIBRARIES[library](target_modules=DOWN), zoo.adapted(peft, "llama", target_modules=DOWN).train()
    (logits, grads, _), (expected, wanted, _) = training_step(fused), training_step(unfused)
    zoo.assert_same(logits, expected)
    assert gated_calls(fused) == 2 and grads.keys() == wanted.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, wanted[name], rtol=1e-3, atol=1e-4 * wanted[name].abs().max().item())


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_module_saves_no_activation_but_gate_and_up(library):
    model = LIBRARIES[library](lora_dropout=0.1, target_modules=["down_proj"])
    mlp, kept = mlps(model)[0], []
    x = torch.randn(3, 5, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = mlp(x)
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = sorted((tuple(t.shape), t.dtype) for t in kept if t.untyped_storage().data_ptr() not in known)
    gate = up = ((3, 5, 48), torch.float32)
    assert shapes == [gate, up, ((15, 4), torch.float32), ((15, 6), torch.uint8)]
    y.sum().backward()
    assert x.grad.abs().max() > 0


@pytest.mark.parametrize("library", LIBRARIES)
def test_names_types_and_state_dict_stay(library):
    fused, plain = both(LIBRARIES[library])
    assert fused.state_dict().keys() == plain.state_dict().keys()
    assert [n for n, _ in fused.named_modules()] == [n for n, _ in plain.named_modules()]
    assert len(mlps(fused)) == 2 and all(type(m).__name__ == "FusedLlamaMLP" for m in mlps(fused))


@pytest.mark.parametrize("library", LIBRARIES)
def test_copies_and_pickles_are_fused_too(library):
    model = LIBRARIES[library]()
    expected, file = zoo.logits(model), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False), pickle.loads(pickle.dumps(model))):
        assert torch.equal(zoo.logits(twin), expected) and gated_calls(twin) == 2
        assert list(map(type, mlps(twin))) == list(map(type, mlps(model)))
        mlps(twin)[0].up_proj.weight.data.zero_()
    assert torch.equal(zoo.logits(model), expected)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("how", ["unload", "merge_and_unload"])
def test_taking_the_adapters_off_gives_the_class_back(library, how):
    model = LIBRARIES[library]()
    bare = getattr(model, how)()
    assert [type(m) for m in mlps(bare)] == [LlamaMLP] * 2 and type(mlps(bare)[0].down_proj) is nn.Linear
    assert "_unfused" not in vars(mlps(bare)[0])
    assert type(mlps(copy.deepcopy(bare))[0]) is LlamaMLP


def test_deleting_adapters_gives_the_class_back_with_the_last():
    model = ours()
    for name, target in (("second", "down_proj"), ("third", "q_proj")):
        model.add_adapter(name, pf.LoraConfig(r=2, target_modules=[target]))
    model.set_adapter("second")
    model.delete_adapter("default")
    assert gated_calls(model) == 2
    model.set_adapter("third")
    model.delete_adapter("second")
    assert [type(m) for m in mlps(model)] == [LlamaMLP] * 2
    zoo.assert_as_exact(zoo.logits(model), zoo.build("llama").train())  # q_proj's lora_B is zero
    model.add_adapter("fourth", pf.LoraConfig(r=2, target_modules=["down_proj"]))
    model.set_adapter("fourth")
    assert gated_calls(model) == 2


def test_unfuse_and_the_report():
    model = zoo.adapted(peft, "llama")
    before, report = zoo.logits(model), pf.fuse(model)
    assert report.gated == [f"base_model.model.model.layers.{i}.mlp" for i in range(2)]
    assert "4 layers fused, 0 left to PEFT\n  2 gated activations fused with their down_proj" in str(report)
    zoo.assert_same(zoo.logits(model), before)
    assert report.calls() == {"fused": 4} and pf.fuse(model).gated == report.gated
    assert pf.unfuse(model) == 4 and [type(m) for m in mlps(model)] == [LlamaMLP] * 2
    assert torch.equal(zoo.logits(model), before)
    assert pf.fuse(zoo.adapted(peft, "llama", target_modules=["q_proj"])).gated == []


def second(model, **options):
    library = pf if isinstance(model, pf.PeftModel) else peft
    config = library.LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False, **options)
    model.add_adapter("second", config)
    return model


def doubled(module):
    return module.register_forward_hook(lambda module, args, output: 2 * output)


def patched(module):
    inner = module.forward
    module.forward = lambda x: 3 * inner(x)


# {change: (function of the fused model, whether the first module still runs fused)}.
CHANGES = {
    "another adapter": (lambda m: second(m).set_adapter("second"), True),
    "merged": (lambda m: m.merge_adapter(), False),
    "several adapters": (lambda m: second(m).base_model.set_adapter(["default", "second"]), False),
    "DoRA": (lambda m: second(m, use_dora=True).set_adapter("second"), False),
    "a hook on down_proj": (lambda m: doubled(mlps(m)[0].down_proj), False),
    "a pre-hook on down_proj": (lambda m: mlps(m)[0].down_proj.register_forward_pre_hook(lambda m, x: 2 * x[0]), False),
    "a backward hook": (lambda m: mlps(m)[0].down_proj.register_full_backward_hook(lambda m, i, o: None), False),
    "a forward of down_proj's own": (lambda m: patched(mlps(m)[0].down_proj), False),
    "a hook on act_fn": (lambda m: doubled(mlps(m)[0].act_fn), False),
    "another act_fn": (lambda m: setattr(mlps(m)[0], "act_fn", nn.GELU()), False),
    "a forward around the module's": (lambda m: patched(mlps(m)[0]), True),
    "a plain down_proj": (lambda m: setattr(mlps(m)[0], "down_proj", nn.Linear(48, 32)), False),
    "a hook on gate_proj": (lambda m: doubled(mlps(m)[0].gate_proj), True),
    "a hook on the module": (lambda m: doubled(mlps(m)[0]), True),
    "eval mode": (lambda m: m.eval(), True),
    "bfloat16": (lambda m: m.bfloat16(), True),
}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore")
def test_a_change_after_fusing_is_noticed(library, change):
    act, stays = CHANGES[change]
    fused, plain = both(LIBRARIES[library])
    before = zoo.logits(fused)
    for model in (fused, plain):
        torch.manual_seed(1)
        act(model)
    gated_mlp.release(plain)
    mlp, x = mlps(fused)[0], torch.randn(2, 5, 32, dtype=next(fused.parameters()).dtype)
    with pf.recording() as ran:
        y = mlp(x)
    assert any(op == "swiglu" for op, _ in ran) == stays
    expected = mlps(plain)[0](x)
    if stays:
        torch.testing.assert_close(y, expected, rtol=0, atol=4 * torch.finfo(y.dtype).eps * expected.abs().max().item())
    else:
        assert torch.equal(y, expected)
    assert (zoo.logits(fused) - before).abs().max() > 1e-3 or change in ("merged", "a backward hook", "eval mode")


@pytest.mark.parametrize("library", LIBRARIES)
def test_rows_of_several_adapters_and_disabled_ones_run_unfused(library):
    model, base = LIBRARIES[library]().eval(), zoo.build("llama")
    names = ["default", "__base__", "default"]
    assert gated_calls(model) == 2 and gated_calls(model, adapter_names=names) == 0
    mixed, one = zoo.logits(model, adapter_names=names), zoo.logits(model)
    zoo.assert_same(mixed[[0, 2]], one[[0, 2]])
    zoo.assert_same(mixed[1], zoo.logits(base)[1])
    with model.disable_adapter():
        assert gated_calls(model) == 0 and torch.equal(zoo.logits(model), zoo.logits(base))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_with_dropout(library, reentrant):
    model, grads = LIBRARIES[library](lora_dropout=0.3, target_modules=DOWN), []
    for on in (False, True):
        if on:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        grads.append(training_step(model)[1])
        assert gated_calls(model) == 2
    assert grads[0].keys() == grads[1].keys() and all(torch.equal(g, grads[1][n]) for n, g in grads[0].items())


@pytest.mark.parametrize("library", LIBRARIES)
def test_compiles_in_one_graph(library):
    model = LIBRARIES[library](lora_dropout=0.1, target_modules=DOWN)
    mlp, x, results = mlps(model)[0], torch.randn(2, 5, 32, requires_grad=True), []
    for f in (mlp, torch.compile(mlp, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        with pf.recording() as ran:
            y = f(x)
        assert any(op == "swiglu" for op, _ in ran)
        wanted = [x, *(p for p in mlp.parameters() if p.requires_grad)]
        results.append((y, *torch.autograd.grad(y.square().mean(), wanted)))
    assert len(results[0]) == 8
    torch.testing.assert_close(*results)


def test_files_are_those_of_peft(tmp_path):
    model = ours(target_modules=DOWN)
    model.save_pretrained(tmp_path)
    back = peft.PeftModel.from_pretrained(zoo.build("llama"), tmp_path)
    zoo.assert_same(zoo.logits(back), zoo.logits(model.eval()))
    again = pf.PeftModel.from_pretrained(zoo.build("llama"), tmp_path)
    assert gated_calls(again) == 2
    zoo.assert_same(zoo.logits(again), zoo.logits(model))


def test_autocast():
    fused, plain = both(ours)
    with torch.autocast("cpu", torch.bfloat16):
        assert gated_calls(fused) == 2
        a, b = zoo.logits(fused), zoo.logits(plain)
    assert a.dtype == b.dtype
    torch.testing.assert_close(a, b, rtol=0, atol=0.05 * b.abs().max().item())


SIZES = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
RELATIVES = {
    "MistralMLP": lambda: tf.MistralForCausalLM(tf.MistralConfig(**SIZES, num_key_value_heads=2)),
    "Qwen2MLP": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**SIZES, num_key_value_heads=2)),
    "Qwen3MLP": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8)),
}


@pytest.mark.parametrize("kind", RELATIVES)
def test_relatives_of_llama_are_known_by_their_forward(kind):
    torch.manual_seed(0)
    model = RELATIVES[kind]()
    model = pf.get_peft_model(model, pf.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    assert gated_calls(model) == 2
    expected = zoo.logits(model)
    gated_mlp.release(model)
    assert gated_calls(model) == 0 and any(type(m).__name__ == kind for m in model.modules())
    zoo.assert_same(zoo.logits(model), expected)


class Returned(LlamaMLP):
    """The second form in which transformers writes the formula."""

    def forward(self, hidden_state):
        return self.down_proj(self.act_fn(self.gate_proj(hidden_state)) * self.up_proj(hidden_state))


def test_a_subclass_whose_forward_names_its_argument_otherwise_is_fused():
    torch.manual_seed(0)
    model = pf.get_peft_model(with_mlp(Returned), pf.LoraConfig(target_modules="all-linear", init_lora_weights=False))
    assert gated_calls(model) == 2
    mlp, x = mlps(model)[0], torch.randn(2, 5, 32)
    assert isinstance(mlp, Returned)
    torch.testing.assert_close(mlp(hidden_state=x), mlp(x))


def other_activation():
    return tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, hidden_act="gelu"))


def gemma():
    return tf.GemmaForCausalLM(tf.GemmaConfig(**SIZES, num_key_value_heads=2, head_dim=8))


class Clipped(LlamaMLP):
    """The formula with a clamp, which must not be fused."""

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)).clamp(-1, 1)


class Exchanged(LlamaMLP):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x))


def with_mlp(kind):
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES))
    for layer in model.model.layers:
        layer.mlp = kind(model.config)
    return model


def with_instance_forward():
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES))
    for layer in model.model.layers:
        patched(layer.mlp)
    return model


OTHERS = [
    other_activation,
    gemma,
    lambda: with_mlp(Clipped),
    lambda: with_mlp(Exchanged),
    with_instance_forward,
]


@pytest.mark.parametrize("make", OTHERS, ids=["gelu", "gemma", "clipped", "exchanged", "instance"])
def test_modules_with_another_formula_are_not_fused(make):
    torch.manual_seed(0)
    model = make()
    kinds = {name: type(m) for name, m in model.named_modules() if name.endswith(".mlp")}
    model = pf.get_peft_model(model, pf.LoraConfig(r=4, target_modules="all-linear"))
    assert kinds == {name: type(m) for name, m in model.get_base_model().named_modules() if name.endswith(".mlp")}
    assert len(kinds) == 2 and gated_calls(model) == 0


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_hooks_on_every_module_are_called(compiled):
    model, x = ours(), torch.randn(2, 5, 32)
    mlp = mlps(model)[0]
    function = torch.compile(mlp, backend="aot_eager") if compiled else mlp

    def halved(module, args, output):
        return output / 2 if type(module).__name__ == "SiLUActivation" else None

    handle = nn.modules.module.register_module_forward_hook(halved)
    try:
        with pf.recording() as ran:
            hooked = function(x)
    finally:
        handle.remove()
    assert not any(op == "swiglu" for op, _ in ran)
    with pf.recording() as ran:
        zoo.assert_same(mlp(x), 2 * hooked)
    assert any(op == "swiglu" for op, _ in ran) and hooked.abs().max() > 1e-2
