"""Batches whose rows belong to different adapters, on a fused model: PEFT's results, errors and gradients."""

import peft
import pytest
import torch
from torch import nn

import pypeft_fast as pf
from pypeft_fast.model.joints.mixed_rows import mixed_rows_linear
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


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("batch", ["together", "apart", "one"])
def test_gradients_are_peft_s(batch, autocast):
    results = []
    for fused in (False, True):
        model = model_of()
        model.base_model.set_adapter(["default", "b", "c"])
        if fused:
            report = pf.fuse(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = zoo.logits(model, IDS, adapter_names=BATCHES[batch])
        y.float().square().mean().backward()
        results.append([y.float(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert set(report.calls()) == {"fused"} and len(results[0]) > 5
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=(0.06 if autocast else 1e-4) * b.abs().max().item())


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


def test_dropout_with_rows_is_left_to_peft():
    model = model_of(lora_dropout=0.5)
    report = pf.fuse(model)
    layer, x = model.get_submodule(report.fused[0]), torch.randn(2, 3, 32)
    layer.lora_dropout.train()
    layer(x, adapter_names=["default", "b"])
    (reason,) = report.calls()
    assert reason.startswith("adapter_names with dropout")


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
    x, W = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([[1.0, 0.0]])
    A, B = torch.tensor([[0.0, 1.0]]), torch.tensor([[10.0]])
    y = mixed_rows_linear(x, W, torch.tensor([0.5]), [([0, 2], A, B, 2.0), ([1], A, -B, torch.tensor(1.0))])
    assert y.tolist() == [[41.5], [-36.5], [125.5]]
