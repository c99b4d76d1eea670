"""pf.quantize_model compared with loading by BitsAndBytesConfig in transformers, and uses of the quantised model."""

import peft
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import pypeft_fast as pf

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
IDS = torch.arange(12).view(1, 12) % 50
FORMATS = pytest.mark.parametrize("format", ["nf4", "fp4", "int8"])


def llama(**options):
    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=50)
    return LlamaForCausalLM(LlamaConfig(**{**sizes, "num_key_value_heads": 2, "tie_word_embeddings": False, **options}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    llama().save_pretrained(path)
    return path


def config_of(format, nested=True):
    if format == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    options = dict(bnb_4bit_quant_type=format, bnb_4bit_use_double_quant=nested)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, **options)


def quantized_layers(model):
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def assert_same_layers(ours, theirs):
    ours, theirs = quantized_layers(ours), quantized_layers(theirs)
    assert ours.keys() == theirs.keys() and len(ours) == 14
    for name, module in ours.items():
        mine, its = pf.frozen_of(module), pf.frozen_of(theirs[name])
        assert type(module) is type(theirs[name]) and (mine.format, mine.shape) == (its.format, its.shape)
        assert all(torch.equal(a, b) for a, b in zip(mine.tensors, its.tensors, strict=True)), name


@FORMATS
@pytest.mark.parametrize("nested", [True, False])
def test_the_model_equals_what_transformers_loads(folder, format, nested):
    ours = pf.quantize_model(AutoModelForCausalLM.from_pretrained(folder), format, nested=nested)
    theirs = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config_of(format, nested))
    assert_same_layers(ours, theirs)
    for what in ("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized", "quantization_method"):
        assert getattr(ours, what, None) == getattr(theirs, what, None)
    mine, its = (model.config.quantization_config.to_dict() for model in (ours, theirs))
    skipped = mine.pop("llm_int8_skip_modules")
    assert its.pop("llm_int8_skip_modules") is None and "lm_head" in skipped and mine == its
    assert type(ours.hf_quantizer) is type(theirs.hf_quantizer)
    with torch.no_grad():
        torch.testing.assert_close(ours.train()(IDS).logits, theirs.train()(IDS).logits)
        dense = llama()(IDS).logits
        assert 0 < (ours(IDS).logits - dense).norm() / dense.norm() < (0.3 if format != "int8" else 0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bytes_are_those_of_quantize(dtype):
    dense, model = llama().to(dtype), llama().to(dtype)
    pf.quantize_model(model, "nf4", block_size=32)
    for name, module in quantized_layers(model).items():
        weight, frozen = dense.get_submodule(name).weight, pf.frozen_of(module)
        expected = pf.quantize(weight, "nf4", block_size=32)
        assert frozen.dtype == dtype == module.compute_dtype
        assert all(torch.equal(a, b.view_as(a)) for a, b in zip(frozen.tensors, expected.tensors, strict=True))


@FORMATS
def test_evaluation_leaves_the_bytes_as_they_are(format):
    model = pf.quantize_model(llama(), format).eval()
    before = {name: [t.clone() for t in pf.frozen_of(m).tensors] for name, m in quantized_layers(model).items()}
    with torch.no_grad():
        first = model(IDS).logits
    for name, module in quantized_layers(model).items():
        assert all(torch.equal(a, b) for a, b in zip(pf.frozen_of(module).tensors, before[name], strict=True))
    if format != "int8":  # the int8 product of bitsandbytes also rounds x
        dense = llama().eval()
        for name, module in quantized_layers(model).items():
            dense.get_submodule(name).weight.data = pf.frozen_of(module).dequantize()
        torch.testing.assert_close(first, dense(IDS).logits.detach(), rtol=1e-4, atol=1e-4)


@FORMATS
def test_the_model_is_saved_and_loaded_by_transformers(format, tmp_path):
    model = pf.quantize_model(llama(), format, skip=("lm_head", "model.layers.0.mlp"), nested=False)
    assert len(quantized_layers(model)) == 11
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert quantized_layers(again).keys() == quantized_layers(model).keys()
    with torch.no_grad():
        torch.testing.assert_close(again.train()(IDS).logits, model.train()(IDS).logits)


def test_layers_to_skip_may_come_from_a_generator():
    model = pf.quantize_model(llama(), skip=(name for name in ["o_proj"]))
    attention = model.model.layers[0].self_attn
    assert type(attention.o_proj) is torch.nn.Linear is not type(attention.q_proj)


def test_a_tied_head_stays_dense_and_a_bias_is_shared():
    model = llama(tie_word_embeddings=True, attention_bias=True)
    bias = model.model.layers[0].self_attn.q_proj.bias
    pf.quantize_model(model, skip=())
    assert type(model.lm_head) is torch.nn.Linear and model.lm_head.weight is model.model.embed_tokens.weight
    assert model.model.layers[0].self_attn.q_proj.bias is bias and not bias.requires_grad


def test_the_weight_of_conv1d_is_stored_transposed():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=50)).train()
    weight = model.transformer.h[0].mlp.c_fc.weight.detach().t().contiguous()
    pf.quantize_model(model)
    fc = model.transformer.h[0].mlp.c_fc
    assert (
        torch.equal(pf.frozen_of(fc).tensors[0], pf.quantize(weight).tensors[0]) and model(IDS).logits.isfinite().all()
    )


@FORMATS
def test_adapters_train_on_it_and_their_card_says_so(format, tmp_path):
    model = pf.quantize_model(llama(), format)
    model = pf.get_peft_model(model, pf.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(8):
        losses.append(model(IDS, labels=IDS).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.2
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert f"- load_in_{'8' if format == 'int8' else '4'}bit: True" in card
    assert format == "int8" or f"- bnb_4bit_quant_type: {format}" in card
    again = peft.PeftModel.from_pretrained(pf.quantize_model(llama(), format), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again.train()(IDS).logits, model(IDS).logits, rtol=0.02, atol=0.02)


def test_trainer_accepts_the_model(tmp_path):
    from transformers import Trainer, TrainingArguments

    model = pf.get_peft_model(pf.quantize_model(llama()), pf.LoraConfig(r=2, task_type="CAUSAL_LM"))
    arguments = TrainingArguments(str(tmp_path), max_steps=2, report_to="none", save_strategy="no", use_cpu=True)
    data = [{"input_ids": IDS[0], "labels": IDS[0]}] * 4
    assert Trainer(model, arguments, train_dataset=data).train().training_loss > 0


@pytest.mark.parametrize(
    "make,options,error,words",
    [
        (lambda: torch.nn.Linear(4, 4), {}, TypeError, "model is a Linear, expected a transformers.PreTrainedModel"),
        (llama, {"format": "nf5"}, ValueError, "format='nf5'; choose one of nf4, fp4, int8"),
        (llama, {"format": "fp8"}, ValueError, "format='fp8'; choose one of nf4, fp4, int8"),
        (llama, {"block_size": 48}, ValueError, "block_size=48; bitsandbytes has 32, 64"),
        (llama, {"compute_dtype": torch.float64}, TypeError, "compute_dtype=torch.float64"),
        (lambda: llama().double(), {}, TypeError, r"the weight of model.layers.0.self_attn.q_proj is torch.float64"),
        (lambda: llama().to("meta"), {}, ValueError, "self_attn.q_proj has no memory"),
        (llama, {"skip": ("model.layers",)}, ValueError, "no linear layer of LlamaForCausalLM is left"),
        (
            llama,
            {"skip": ("layers.0.mlp",)},
            ValueError,
            "skip: no linear layer is called 'layers.0.mlp'; 'model.layers",
        ),
        (lambda: pf.quantize_model(llama()), {}, ValueError, "model is quantised already, by bitsandbytes"),
        (llama, {"skip": "lm_head"}, TypeError, r"skip='lm_head' must be a list of names, such as \['lm_head'\]"),
        (llama, {"skip": None}, TypeError, "skip=None must be a list of names"),
        (llama, {"skip": [3]}, TypeError, r"skip=\[3\] must be a list of names"),
        (llama, {"nested": "no"}, TypeError, "nested='no'; give True or False"),
        (llama, {"compute_dtype": "float32"}, TypeError, "compute_dtype='float32'; accepted are torch.float32"),
    ],
)
def test_unsupported_models_are_errors_and_are_not_changed(make, options, error, words):
    model = make()
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(error, match=words):
        pf.quantize_model(model, **options)
    assert kinds == [type(module) for module in model.modules()]


def test_without_bitsandbytes_the_error_names_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        pf.quantize_model(llama())
    with pytest.raises(ValueError, match="format='nf5'; choose one of nf4, fp4, int8"):
        pf.quantize_model(llama(), "nf5")  # a mistake that an installation would not mend
