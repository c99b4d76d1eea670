"""Bottleneck adapters on whole models: their places, values, gradients, trained parameters, and files."""

import copy
import io
import pickle
import threading

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from torch import nn

from pypeft_fast.model.joints import rows
from pypeft_fast.model.tuners import BottleneckConfig
from pypeft_fast.model.tuners.bottleneck_layer import BottleneckLinear
from tests.model.zoo import IDS, assert_same, build, liven, logits

ENDS = {  # the last layer of attention in a block; FEEDFORWARD: the first and the last layer of the feedforward part
    "llama": ["self_attn.o_proj"], "gpt2": ["attn.c_proj"], "bert": ["attention.output.dense"],
    "t5": ["SelfAttention.o", "EncDecAttention.o"],
}  # fmt: skip
FEEDFORWARD = {
    "llama": ("mlp.gate_proj", "mlp.down_proj"), "gpt2": ("mlp.c_fc", "mlp.c_proj"),
    "bert": ("intermediate.dense", "output.dense"), "t5": ("DenseReluDense.wi", "DenseReluDense.wo"),
}  # fmt: skip
CASES = [(kind, placement) for kind in ENDS for placement in ("houlsby", "pfeiffer", "parallel")]


def adapted(kind, base=None, **options):
    model = peft.get_peft_model(build(kind) if base is None else base, BottleneckConfig(reduction_factor=4, **options))
    model.eval()
    if base is None:
        assert_same(logits(model), logits(build(kind)))  # a new adapter changes nothing
    liven(model)
    return model


def expected_places(kind, placement):
    feedforward = FEEDFORWARD[kind][1]
    found = []
    for name, _ in build(kind).named_modules():
        inside = any(name.endswith(f".{end}") for end in ENDS[kind])
        if name.endswith(f".{feedforward}") and not inside or inside and placement == "houlsby":
            found.append(name)
    return found


def source_of(kind, place):
    return place.replace(FEEDFORWARD[kind][1], FEEDFORWARD[kind][0])


@pytest.mark.parametrize("kind,placement", CASES)
def test_places_values_and_gradients(kind, placement):
    model = adapted(kind, placement=placement, scaling=0.5, activation="silu", layer_norm=kind == "bert")
    places = expected_places(kind, placement)
    parts = ["down", "up", *(["norm"] * (kind == "bert"))]
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert set(trained) == {
        f"base_model.model.{place}.bottleneck_adapter_{part}.default.{end}"
        for place in places
        for part in parts
        for end in ("weight", "bias")
    }
    base = build(kind)
    inputs, copies = {}, {}
    for place in places:
        # The formula in plain PyTorch, by hooks on a model without adapters.
        start = f"base_model.model.{place}.bottleneck_adapter_"
        values = {n: p.detach().clone().requires_grad_() for n, p in trained.items() if n.startswith(start)}
        copies |= values
        values = {n.removeprefix(start).replace(".default.", "."): p for n, p in values.items()}
        layer = base.get_submodule(place)

        def add(module, args, y, values=values, place=place):
            x = inputs.pop(place) if placement == "parallel" else y
            if "norm.weight" in values:
                x = F.layer_norm(x, x.shape[-1:], values["norm.weight"], values["norm.bias"])
            inner = F.silu(F.linear(x, values["down.weight"], values["down.bias"]))
            return y + 0.5 * F.linear(inner, values["up.weight"], values["up.bias"])

        layer.register_forward_hook(add)
        if placement == "parallel":
            source = base.get_submodule(source_of(kind, place))
            source.register_forward_pre_hook(lambda module, args, place=place: inputs.update({place: args[0]}))
    outputs = [logits(m) for m in (model, base)]
    assert_same(*outputs)
    assert (outputs[0] - logits(build(kind))).abs().max() > 1e-3
    for output in outputs:
        output.square().mean().backward()
    for name, parameter in trained.items():
        grad = copies[name].grad
        torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=1e-6 + 1e-4 * grad.abs().max().item())
    with model.disable_adapter():
        assert_same(logits(model), logits(build(kind)))
    plain = model.unload()
    assert_same(logits(plain), logits(build(kind)))
    assert plain.state_dict().keys() == build(kind).state_dict().keys()


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("kind,placement", CASES)
def test_files(kind, placement, low_memory, tmp_path):
    model = adapted(kind, placement=placement, layer_norm=low_memory)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(build(kind), tmp_path, low_cpu_mem_usage=low_memory)
    assert torch.equal(logits(loaded), logits(model))
    assert not any(p.requires_grad for p in loaded.parameters())


def test_a_model_whose_modules_have_names_like_ours(tmp_path):
    """Modules of MobileBERT have "bottleneck" in their names; PEFT 0.18 identifies tensors by a part of the name."""
    torch.manual_seed(0)
    config = tf.MobileBertConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16, num_feedforward_networks=1,
    )  # fmt: skip
    base = tf.MobileBertForSequenceClassification(config).eval()
    base.bottleneck_extra = nn.Linear(2, 2)
    model = adapted("mobilebert", copy.deepcopy(base), placement="pfeiffer")
    assert any("bottleneck.input.dense" in name for name, _ in base.named_parameters())
    keys = set(peft.get_peft_model_state_dict(model))
    assert keys and all(".bottleneck_adapter_" in key for key in keys)
    assert all("_adapter_" in n for n, p in model.named_parameters() if p.requires_grad)
    model.save_pretrained(tmp_path)
    assert_same(logits(peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)), logits(model))
    assert_same(logits(model.unload()), logits(base))


@pytest.mark.parametrize("reentrant", [False, True])
def test_dropout_and_checkpointing(reentrant):
    grads = []
    for checkpointing in (False, True):
        model = adapted("llama", placement="parallel", dropout=0.3).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        torch.manual_seed(3)
        model(input_ids=IDS, labels=IDS).loss.backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
        torch.manual_seed(4)
        assert not torch.equal(logits(model), logits(model))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_generation_uses_the_adapters():
    model = adapted("llama", placement="parallel")
    options = dict(attention_mask=torch.ones_like(IDS), max_new_tokens=5, do_sample=False, pad_token_id=0)
    found = model.generate(input_ids=IDS, **options)
    assert torch.equal(found, model.generate(input_ids=IDS, use_cache=False, **options))
    assert not torch.equal(found, build("llama").generate(input_ids=IDS, **options))


@pytest.mark.parametrize("placement", ["houlsby", "parallel"])
def test_several_adapters_and_rows(placement):
    model = adapted("bert", placement=placement)
    model.add_adapter("second", BottleneckConfig(placement="parallel", reduction_factor=8))
    model.set_adapter("second")
    liven(model, 2, "second")
    expected = {"second": logits(model), "__base__": logits(build("bert"))}
    model.set_adapter("default")
    expected["default"] = logits(model)
    named = ("second", "__base__", "default")
    with rows.using(rows.Rows(named)):
        mixed = logits(model)
    for i, name in enumerate(named):
        assert_same(mixed[i], expected[name][i])
    status = {s.name: s for s in model.get_layer_status()}["model.bert.encoder.layer.0.output.dense"]
    assert status.available_adapters == ["default", "second"] and status.requires_grad["second"] is False
    model.set_adapter("second")
    model.delete_adapter("default")
    assert torch.equal(logits(model), expected["second"]) and not any("default" in n for n in model.state_dict())


def test_two_adapters_one_after_the_other():
    model = adapted("bert", placement="pfeiffer")
    model.add_adapter("second", BottleneckConfig(placement="pfeiffer"))
    model.base_model.set_adapter(["default", "second"])
    liven(model, 2, "second")
    layer = model.bert.encoder.layer[0].output.dense
    x = torch.randn(3, 48)
    y = F.linear(x, layer.weight, layer.bias)
    for name in ("default", "second"):
        down, up = layer.bottleneck_adapter_down[name], layer.bottleneck_adapter_up[name]
        y = y + up(F.relu(down(y)))
    assert_same(layer(x), y)


def test_concurrent_calls_use_their_own_inputs():
    """The input of a parallel adapter is that of the call in the same thread, also if two threads run concurrently."""
    model = adapted("llama", placement="parallel")
    inputs = [(IDS + i) % 97 for i in range(2)]
    with torch.no_grad():
        expected = [logits(model, ids) for ids in inputs]
    found = [None, None]
    meet = threading.Barrier(2, timeout=60)
    for block in model.base_model.model.model.layers:  # between the first and the last layer of the feedforward part
        block.mlp.up_proj.register_forward_pre_hook(lambda module, args: (meet.wait(), None)[1])

    def run(i):
        with torch.no_grad():
            found[i] = logits(model, inputs[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_layer_kept_in_float32_beside_half_precision():
    """transformers keeps wo of T5 in float32, so the input of a parallel adapter has another dtype than the output."""
    base = build("t5").to(torch.bfloat16)
    for name, module in base.named_modules():
        if name.endswith(".wo"):
            module.float()
    model = adapted("t5", base, placement="parallel")
    assert_close_to_half(logits(model), logits(adapted("t5", placement="parallel")))


def assert_close_to_half(a, b):
    assert (a.float() - b).abs().max() < 0.05 * b.abs().max()


def test_copies_pickles_and_state_dicts():
    model = adapted("gpt2", placement="parallel")
    expected = logits(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(twin), expected)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    fresh = adapted("gpt2", placement="parallel")
    liven(fresh, 5)
    fresh.load_state_dict(torch.load(buffer))
    assert torch.equal(logits(fresh), expected)


def test_adapters_of_a_half_precision_model_are_saved_loaded_and_trained_in_float32(tmp_path):
    """The values of a file are not rounded to the model's dtype when the file is loaded."""
    model = adapted("t5", build("t5").to(torch.bfloat16), placement="parallel")
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    model.save_pretrained(tmp_path)
    for low_memory in (False, True):
        loaded = peft.PeftModel.from_pretrained(build("t5").to(torch.bfloat16), tmp_path, low_cpu_mem_usage=low_memory)
        found = [p for n, p in loaded.named_parameters() if "_adapter_" in n]
        assert all(torch.equal(a, b) for a, b in zip(trained, found, strict=True))
        assert torch.equal(logits(loaded), logits(model))
    wide = adapted("t5", build("t5").to(torch.bfloat16).float(), placement="parallel")
    for m in (model, wide):
        logits(m).float().square().mean().backward()
    expected = [p.grad for p in wide.parameters() if p.requires_grad]
    for p, grad in zip(trained, expected, strict=True):
        assert (p.grad - grad).abs().max() < 0.05 * grad.abs().max()


def test_compiled_without_graph_breaks():
    model = adapted("llama", placement="parallel").base_model.model.model.layers[0].mlp
    x = torch.randn(2, 3, 32)
    torch._dynamo.reset()
    assert torch._dynamo.explain(model)(x).graph_break_count == 0
    assert_same(torch.compile(model, backend="eager")(x), model(x))


def test_merging_is_refused_before_anything_is_changed():
    model = adapted("llama")
    expected = logits(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="the bottleneck adapter 'default' cannot be merged into a weight"):
            merge()
    assert torch.equal(logits(model), expected)


def test_models_without_a_place_for_a_bottleneck_are_errors():
    with pytest.raises(ValueError, match="no transformer block is found in Sequential"):
        peft.get_peft_model(nn.Sequential(nn.Linear(2, 2)), BottleneckConfig())
    model = adapted("llama", placement="parallel")
    layer = next(m for m in model.modules() if isinstance(m, BottleneckLinear) and m.taps)
    with pytest.raises(ValueError, match="the parallel bottleneck adapter 'default' got no input"):
        layer(torch.randn(2, 48))
