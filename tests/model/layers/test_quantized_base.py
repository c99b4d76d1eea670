"""PEFT's layers over quantised weights on the fused ops: values, gradients, reasons, merging, files."""

import copy
import warnings

import peft
import pytest
import torch
import transformers as tf
from torch import nn
from transformers.integrations.finegrained_fp8 import FP8Linear

import pypeft_fast as pf
from pypeft_fast.frozen.modules import frozen_of

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
FOUR = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
OPTIONS = {"4bit": FOUR, "nested": FOUR | dict(bnb_4bit_use_double_quant=True), "8bit": dict(load_in_8bit=True)}
IDS = torch.tensor([[5, 17, 42, 8, 96, 3, 1], [11, 2, 2, 77, 60, 31, 9]])
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS = ["q_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("llama")
    tf.LlamaForCausalLM(config).save_pretrained(path)
    return path


def loaded(folder, kind):
    config = tf.BitsAndBytesConfig(**OPTIONS[kind])
    options = dict(quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32)
    return tf.AutoModelForCausalLM.from_pretrained(folder, **options)


def dense(model):
    """A copy of the model in which nn.Linear over the decoded weight replaces each quantised layer."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)):
            linear = nn.Linear(module.in_features, module.out_features, bias=False)
            linear.weight.data = frozen_of(module).dequantize(torch.float32)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, linear.requires_grad_(False))
    model.is_loaded_in_4bit = model.is_loaded_in_8bit = False
    del model.config.quantization_config
    return model


def embedding_gradient(model):
    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_(True)
    trained = [p for n, p in sorted(model.named_parameters()) if p.requires_grad]
    y = model(inputs_embeds=embedded).logits
    return y, torch.autograd.grad(y.square().mean(), [embedded, *trained])


@pytest.mark.parametrize("kind,method", [*((kind, "lora") for kind in OPTIONS), ("nested", "dora"), ("8bit", "ia3")])
def test_a_quantised_llama_trains_as_the_one_with_decoded_weights(folder, kind, method):
    """Every linear layer of the blocks has an adapter. The gradient of the embedding passes through all of them."""
    if method == "ia3":
        config = pf.IA3Config(target_modules=ALL, feedforward_modules=["down_proj"], init_ia3_weights=False)
    else:
        config = pf.LoraConfig(r=4, target_modules=ALL, init_lora_weights=False, use_dora=method == "dora")
    base = loaded(folder, kind)
    other, model = pf.get_peft_model(dense(base), copy.deepcopy(config)), pf.get_peft_model(base, config)
    values = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for name, parameter in other.named_parameters():
        if name in values:
            parameter.data = values[name].data.clone()
    (y, got), (z, want) = embedding_gradient(model), embedding_gradient(other)
    report = pf.fuse(model)
    assert set(report.calls()) == {"fused"} and len(report.fused) == 14 and not report.left, str(report)
    torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-4 * z.abs().max().item())
    assert len(got) == len(want) == 1 + len(values) > 10 and got[0].abs().max() > 0
    for a, b in zip(got, want, strict=True):
        assert torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) >= 0.9999


def _layers(model):
    return [m for m in model.modules() if isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer)]


def layer(kind="nf4", method="lora", compute=torch.float32, N=64, K=96, bias=True, **options):
    torch.manual_seed(0)
    if kind == "fp8":
        module = FP8Linear(K, N, block_size=(128, 128), has_bias=bias)
        module.weight.data = torch.randn(N, K).to(torch.float8_e4m3fn)
        module.weight_scale_inv.data = torch.rand(1, 1) + 0.5
        module.bias.data = torch.randn(N)
    elif kind == "int8":
        module = bnb.nn.Linear8bitLt(K, N, bias, has_fp16_weights=False).to("cpu")
    else:
        module = bnb.nn.Linear4bit(K, N, bias, quant_type=kind, compute_dtype=compute, compress_statistics=False)
        module = module.to("cpu")
    model = nn.Sequential(module.requires_grad_(False))
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = kind in ("nf4", "fp4"), kind == "int8"
    if method == "ia3":
        config = peft.IA3Config(target_modules=["0"], feedforward_modules=[], init_ia3_weights=False)
    else:
        config = peft.LoraConfig(r=4, target_modules=["0"], init_lora_weights=False, **options)
    return peft.get_peft_model(model, config)


@pytest.mark.parametrize("method", ["lora", "ia3"])
@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8", "fp8"])
def test_pefts_layers_are_fused_and_unfused(kind, method):
    model = layer(kind, method)
    of_peft = type(model.base_model.model[0])
    report, x = pf.fuse(model, strict=True), torch.randn(5, 96, requires_grad=True)
    frozen, bias = frozen_of(model.base_model.model[0].base_layer), model.base_model.model[0].base_layer.bias
    y = model(x)
    adapted = model.base_model.model[0]
    product = nn.functional.linear(x, frozen.dequantize(torch.float32), bias)
    if method == "lora":
        A, B = adapted.lora_A["default"].weight, adapted.lora_B["default"].weight
        expected = product + x @ A.t() @ B.t() * adapted.scaling["default"]
    else:
        expected = product * adapted.ia3_l["default"].flatten()
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    grads = [torch.autograd.grad(out.square().sum(), x)[0] for out in (y, expected)]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-2)
    assert report.calls() == {"fused": 1}
    again = copy.deepcopy(model)
    assert torch.equal(again(x), y)
    assert pf.unfuse(model) == 1 and type(adapted) is of_peft


def test_a_four_bit_layer_computes_in_its_compute_dtype_and_returns_that_of_x():
    model = layer(compute=torch.bfloat16)
    report, x = pf.fuse(model), torch.randn(5, 96)
    y = model(x)
    assert y.dtype == torch.float32 and torch.equal(y, y.bfloat16().float()) and report.calls() == {"fused": 1}
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.float32
    unset = layer(compute=None)
    pf.fuse(unset)
    assert unset(x.bfloat16()).dtype == torch.bfloat16 and not unset.base_model.model[0].base_layer.compute_type_is_set


def test_the_frozen_layer_alone_is_not_packed_in_place():
    """In eval mode on CPUs with AVX512-BF16 bitsandbytes packs the weight in place, and rounds the scales."""
    model = layer().eval()
    report, x = pf.fuse(model), torch.randn(5, 96)
    with torch.no_grad():
        expected = model(x)
        with model.disable_adapter():
            alone = model(x)
        assert not torch.allclose(alone, expected) and torch.equal(model(x), expected)
    assert report.calls() == {"fused": 2}
    assert not getattr(model.base_model.model[0].base_layer.weight.quant_state, "packing_format_for_cpu", False)


@pytest.mark.filterwarnings("ignore")
def test_reasons_why_not_are_counted():
    model = layer()
    report = pf.fuse(model)
    base = model.base_model.model[0].base_layer
    handle = base.register_forward_hook(lambda m, args, out: out * 2)
    x, seen = torch.randn(5, 96, requires_grad=True), {}
    model(x)
    seen["fused around the base: the base layer has hooks or a forward of its own"] = 1
    handle.remove()
    assert report.calls() == seen
    unread = nn.Sequential(bnb.nn.Linear4bit(96, 64))
    unread.is_loaded_in_4bit = True
    unread = peft.get_peft_model(unread, peft.LoraConfig(r=4, target_modules=["0"], use_dora=False))
    report = pf.fuse(unread)
    with pytest.raises((ValueError, AttributeError, AssertionError, RuntimeError)):
        unread(x)
    (reason,) = report.calls()
    assert "the weight is not quantised yet" in reason
    half = layer()
    half.base_model.model[0].lora_A.bfloat16(), half.base_model.model[0].lora_B.bfloat16()
    report = pf.fuse(half)
    half(torch.randn(5, 96))
    assert report.calls() == {"lora_A is torch.bfloat16 beside torch.float32 activations": 1}


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("dora", [False, True])
def test_merging_requantises_and_unmerging_restores_the_bits(kind, dora):
    model = layer(kind, use_dora=dora).eval()
    pf.fuse(model)
    adapted, x = model.base_model.model[0], torch.randn(5, 96)
    before = [t.clone() for t in frozen_of(adapted.base_layer).tensors]
    expected = model(x)
    with pf.lossy_merge() as shares:
        model.merge_adapter()
    assert adapted.merged_adapters == ["default"] and len(shares) == 1 and shares[0] > 0.5
    assert not torch.equal(frozen_of(adapted.base_layer).tensors[0], before[0])
    merged = model(x)
    assert (merged - expected).norm() < 0.2 * expected.norm()
    model.unmerge_adapter()
    assert all(map(torch.equal, frozen_of(adapted.base_layer).tensors, before))
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_an_update_that_rounding_would_lose_is_refused_and_nothing_changes(kind):
    model = layer(kind).eval()
    pf.fuse(model)
    adapted = model.base_model.model[0]
    adapted.lora_B["default"].weight.data *= 1e-4
    before = [t.clone() for t in frozen_of(adapted.base_layer).tensors]
    with pytest.raises(RuntimeError, match="of the update would survive the rounding"):
        model.merge_adapter()
    assert not adapted.merged_adapters and all(map(torch.equal, frozen_of(adapted.base_layer).tensors, before))
    with pf.lossy_merge() as shares:
        model.merge_adapter()
    assert adapted.merged_adapters and shares[0] < 0.9
    with pytest.raises(RuntimeError, match="survive"):
        model.unmerge_adapter()
        model.merge_adapter()
    adapted.lora_B["default"].weight.data[0, 0] = float("nan")
    with pf.lossy_merge(), pytest.raises(ValueError, match="NaNs detected"):
        model.merge_adapter()


def test_a_saved_adapter_loads_over_the_same_quantised_base(folder, tmp_path):
    config = pf.LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False)
    model = pf.get_peft_model(loaded(folder, "nested"), config).eval()
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again = pf.PeftModel.from_pretrained(loaded(folder, "nested"), tmp_path).eval()
    layers = [m for m in _layers(again)]
    assert len(layers) == 6 and all(type(m).__name__ == "FusedLinear4bit" for m in layers)
    for a, b in zip(_layers(model), layers, strict=True):
        x = torch.randn(3, a.in_features)
        assert torch.equal(a(x), b(x))


@pytest.mark.parametrize("kind", ["nested", "8bit"])
def test_rows_of_several_adapters_meet_the_decoded_weight(folder, kind):
    base, names = loaded(folder, kind), ["b", "__base__"]
    models = [pf.get_peft_model(each, pf.LoraConfig(r=4, target_modules=ALL), "a") for each in (dense(base), base)]
    for model in models:
        model.add_adapter("b", pf.LoraConfig(r=2, target_modules=ALL))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    wanted, y = (model.eval()(input_ids=IDS, adapter_names=names).logits for model in models)
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())
    assert set(pf.fuse(models[1]).calls()) == {"fused"}
