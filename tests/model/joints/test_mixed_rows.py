"""Batches whose rows belong to different adapters, on a fused model: PEFT's results, errors and gradients."""

import functools

import peft
import pytest
import torch
from torch import nn

import pypeft_fast as pf
from pypeft_fast.model.joints.rows import positions
from tests.model import zoo


def model_of(kind="llama", **options):
    """A model with the adapters default, b (another rank and scaling) and c (fewer layers)."""
    model = zoo.adapted(peft, kind, **options)
    for name, config in (("b", dict(r=2, lora_alpha=3)), ("c", dict(r=3, target_modules=zoo.TARGETS[kind][:1]))):
        model.add_adapter(name, peft.LoraConfig(**dict(target_modules=zoo.TARGETS[kind]) | config))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            generator = torch.Generator().manual_seed(zoo.hash_of(name))
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


BATCHES = {
    "together": ["default", "default", "b", "c"],
    "apart": ["b", "default", "b", "__base__"],
    "one each": ["c", "b", "default", "__base__"],
    "one": ["b", "b", "b", "b"],
    "base": ["__base__"] * 4,
}
IDS = torch.cat([zoo.IDS, zoo.IDS[:1] + 1]) % 97


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_outputs_are_peft_s(kind, batch):
    model, names = model_of(kind), BATCHES[batch]
    expected = zoo.logits(model, IDS, adapter_names=names)
    report = pf.fuse(model, strict=True)
    torch.testing.assert_close(zoo.logits(model, IDS, adapter_names=names), expected, rtol=1e-5, atol=1e-4)
    targets = zoo.TARGETS[kind]
    ran = [n for n in report.fused if not {"c"}.issuperset(set(names) - {"__base__"}) or n.endswith(targets[0])]
    assert report.calls() == ({} if batch == "base" else {"fused": len(ran)})
    if batch != "base":
        assert not torch.allclose(expected, zoo.logits(model, IDS, adapter_names=["__base__"] * 4), atol=1e-2)


@pytest.mark.parametrize("batch", BATCHES)
def test_a_half_precision_base(batch):
    layer = nn.Linear(24, 40, dtype=torch.bfloat16)
    model = peft.get_peft_model(nn.Sequential(layer), peft.LoraConfig(target_modules=["0"], init_lora_weights=False))
    for name in ("b", "c"):
        model.add_adapter(name, peft.LoraConfig(r=3, target_modules=["0"], init_lora_weights=False))
    x, names = torch.randn(4, 5, 24, dtype=torch.bfloat16), BATCHES[batch]
    expected = model.eval()(x, adapter_names=names)
    pf.fuse(model)
    y = model(x, adapter_names=names)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=0, atol=0.02 * expected.abs().max().item())


def outcome(batch, fused, autocast):
    """The logits, then the gradients of what trains."""
    model = model_of()
    model.base_model.set_adapter(["default", "b", "c"])
    report = pf.fuse(model) if fused else None
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = zoo.logits(model, IDS, adapter_names=BATCHES[batch])
    y.float().square().mean().backward()
    assert report is None or set(report.calls()) == {"fused"}
    return [y.detach().float(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("batch", ["together", "apart", "one"])
def test_gradients_are_peft_s(batch):
    theirs, ours = (outcome(batch, fused, autocast=False) for fused in (False, True))
    assert len(theirs) == len(ours) > 5
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * b.abs().max().item())


@pytest.mark.parametrize("batch", ["together", "apart", "one"])
def test_under_autocast_the_error_is_at_most_twice_peft_s(batch):
    exact = outcome(batch, fused=False, autocast=False)
    theirs, ours = (outcome(batch, fused, autocast=True) for fused in (False, True))

    def error(found):
        parts = zip(found, exact, strict=True)
        return torch.stack([(a - b).norm() / b.norm() for a, b in parts if b.norm() > 0]).square().mean().sqrt()

    assert 0 < error(ours) < 2 * error(theirs)
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=0.06 * theirs[0].abs().max().item())


def layer_outcome(seed, fused, autocast):
    """y, dx and the gradients of the adapters of one layer."""
    torch.manual_seed(seed)
    config = functools.partial(peft.LoraConfig, target_modules=["0"], init_lora_weights=False)
    model = peft.get_peft_model(nn.Sequential(nn.Linear(24, 40)), config()).eval()
    for name in ("b", "c"):
        model.add_adapter(name, config(r=3))
    model.base_model.set_adapter(["default", "b", "c"])
    x, dY = torch.randn(4, 5, 24, requires_grad=True), torch.randn(4, 5, 40)
    report = pf.fuse(model) if fused else None
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = model(x, adapter_names=["default", "b", "c", "__base__"])
    y.float().backward(dY)
    assert report is None or report.calls() == {"fused": 1}
    return [y.detach().float(), x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("seed", range(5))
def test_under_autocast_a_layer_s_gradients_are_peft_s(seed):
    exact = layer_outcome(seed, fused=False, autocast=False)
    theirs, ours = (layer_outcome(seed, fused, autocast=True) for fused in (False, True))
    assert len(ours) == len(theirs) == len(exact) == 8
    for a, b, e in zip(ours, theirs, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.03 * b.abs().max().item())
        assert 0 < (a - e).norm() <= 2 * (b - e).norm()


def test_mistakes_are_peft_s_own_errors():
    model = model_of()
    pf.fuse(model)
    for names, message in (
        (["b"], "Length of `adapter_names` should be the same"),
        (["nobody"] * 4, "Trying to infer with non-existing adapter"),
    ):
        with pytest.raises(ValueError, match=message):
            zoo.logits(model, IDS, adapter_names=names)
    with pytest.raises(ValueError, match="training mode"):
        zoo.logits(model.train(), IDS, adapter_names=BATCHES["apart"])
    model.eval().merge_adapter()
    with pytest.raises(ValueError, match="merged"):
        zoo.logits(model, IDS, adapter_names=BATCHES["apart"])


def test_a_layer_is_one_call_whatever_the_number_of_adapters():
    model = model_of()
    report = pf.fuse(model)
    with pf.recording() as ran, torch.no_grad():
        zoo.logits(model, IDS, adapter_names=["default", "b", "__base__", "b"])
    assert [op for op, _ in ran] == ["multi_lora_forward"] * len(report.fused)


def test_dropout_of_each_row_s_adapter_is_fused():
    """The adapter without dropout drops nothing; the other's rows drop what its rate says."""
    model = model_of(lora_dropout=0.5)
    report = pf.fuse(model)
    layer, x = model.get_submodule(report.fused[0]), torch.randn(2, 3000, 32)
    exact = layer(x, adapter_names=["default", "b"])
    layer.lora_dropout.train()
    y = layer(x, adapter_names=["default", "b"])
    assert report.calls() == {"fused": 2}
    torch.testing.assert_close(y[1], exact[1])
    assert (y[0] - exact[0]).abs().max() > 0.1
    torch.testing.assert_close(y[0].mean(0), exact[0].mean(0), rtol=0, atol=0.1)


def not_fused(change):
    """(reasons counted, ours, PEFT's) of a mixed call after a change."""
    model, names = model_of(), ["default", "b", "__base__", "b"]
    layer, x = model.base_model.model.model.layers[0].self_attn.q_proj, torch.randn(4, 3, 32)
    change(model, layer)
    expected, report = layer(x, adapter_names=names), pf.fuse(model)
    y = layer(x, adapter_names=names)
    return report.calls(), y, expected


class Opaque(nn.Linear):
    def forward(self, x):
        return super().forward(x)


def biased(model, layer):
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True, init_lora_weights=False)
    model.delete_adapter("b"), model.add_adapter("b", config)


def opaque(model, layer):
    layer.base_layer.__class__ = Opaque


def halved(model, layer):
    layer.lora_A["b"].double(), layer.lora_B["b"].double()


def invoked(model, layer):
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], alora_invocation_tokens=[1], init_lora_weights=False)
    model.delete_adapter("b"), model.add_adapter("b", config)


REASONS = {
    "lora_bias=True": biased,
    "the base layer is a Opaque": opaque,
    "the base layer has hooks": lambda model, layer: layer.base_layer.register_forward_hook(lambda *a: 2 * a[2]),
    "lora_A is torch.float64 beside torch.float32": halved,
    "the adapter is of a variant, ALoraLinearVariant": invoked,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reason", REASONS)
def test_what_cannot_be_fused_runs_in_peft_s_forward_and_is_counted(reason):
    calls, y, expected = not_fused(REASONS[reason])
    (counted,) = calls
    assert counted.startswith(reason) and calls[counted] == 1
    assert torch.equal(y, expected)


def test_adapters_of_several_dtypes_are_left_to_peft():
    layer = nn.Linear(12, 9, dtype=torch.bfloat16)
    model = peft.get_peft_model(nn.Sequential(layer), peft.LoraConfig(target_modules=["0"], init_lora_weights=False))
    config = peft.LoraConfig(r=3, target_modules=["0"], init_lora_weights=False)
    model.add_adapter("b", config, autocast_adapter_dtype=False)
    x, names = torch.randn(4, 12, dtype=torch.bfloat16), ["default", "b", "__base__", "b"]
    expected, report = model.eval()(x, adapter_names=names), pf.fuse(model)
    assert torch.equal(model(x, adapter_names=names), expected)
    assert report.calls() == {"adapter_names with adapters of several dtypes": 1}


def test_dora_in_a_mixed_batch_is_peft_s_error():
    model = model_of(use_dora=True)
    report = pf.fuse(model)
    with pytest.raises(ValueError, match="Cannot pass `adapter_names` when DoRA is enabled"):
        zoo.logits(model, IDS, adapter_names=BATCHES["apart"])
    assert not report.calls()
    model = model_of(use_dora=True)  # PEFT has left its hooks in the other
    report, names = pf.fuse(model), ["b", "__base__", "b", "b"]
    zoo.logits(model, IDS, adapter_names=names)  # no row of DoRA's
    assert set(report.calls()) == {"fused"}


def test_generates_with_beams():
    model, names, lengths = model_of(), ["b", "default", "__base__"], dict(max_new_tokens=4, num_beams=2)
    ask = dict(input_ids=zoo.IDS, attention_mask=torch.ones_like(zoo.IDS), do_sample=False, pad_token_id=0)
    expected = model.generate(**ask, **lengths, adapter_names=names)
    report = pf.fuse(model)
    assert torch.equal(model.generate(**ask, **lengths, adapter_names=names), expected) and report.calls()["fused"] > 8


def test_compiles_in_one_graph():
    model = model_of()
    layer = model.get_submodule(pf.fuse(model).fused[0])
    x, names = torch.randn(4, 3, 32), BATCHES["apart"]
    compiled = torch.compile(lambda x: layer(x, adapter_names=names), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x, adapter_names=names))


def test_outputs_of_a_small_example():
    names = ["a", "b", "a"]
    assert positions(names) == {"a": [0, 2], "b": [1]} and list(positions("cab")) == ["c", "a", "b"]
    x, scaled = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor(1.0)
    model = peft.get_peft_model(nn.Sequential(nn.Linear(2, 1)), peft.LoraConfig(r=1, target_modules=["0"]), "a")
    model.add_adapter("b", peft.LoraConfig(r=1, target_modules=["0"]))
    layer, report = model.eval().base_model.model[0], pf.fuse(model)
    layer.base_layer.weight.data, layer.base_layer.bias.data = torch.tensor([[1.0, 0.0]]), torch.tensor([0.5])
    for name, scaling, B in (("a", 2.0, 10.0), ("b", scaled.requires_grad_(), -10.0)):
        layer.lora_A[name].weight.data, layer.lora_B[name].weight.data = torch.tensor([[0.0, 1.0]]), torch.tensor([[B]])
        layer.scaling[name] = scaling
    y = model(x, adapter_names=names)
    assert y.tolist() == [[41.5], [-36.5], [125.5]] and report.calls() == {"fused": 1}
    y.sum().backward()
    assert scaled.grad == -40  # a scaling that is a tensor trains


def test_layers_without_the_adapters_of_an_activated_lora_batch_take_no_options_of_theirs():
    """PEFT hands the offsets of aLoRA to every layer, and takes them out before it calls the base layer."""
    logits = []
    for library in (peft, pf):
        model = zoo.build("llama")
        config = functools.partial(library.LoraConfig, r=2, task_type="CAUSAL_LM", init_lora_weights=False)
        torch.manual_seed(1)
        model = library.get_peft_model(model, config(target_modules=["q_proj", "v_proj"]), "c")
        model.add_adapter("al", config(target_modules=["q_proj"], alora_invocation_tokens=[5, 6]))
        ids = torch.tensor([[1, 5, 6, 9, 2], [3, 4, 5, 6, 7]])
        logits.append([model.eval()(ids, adapter_names=names).logits for names in (["al", "al"], ["c", "al"])])
    for theirs, ours in zip(*logits, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
