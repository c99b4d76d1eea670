"""Tensors that PEFT writes besides those of the adapter, files of other models, and files of earlier versions."""

import copy
import json

import huggingface_hub
import peft
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file

from tests.model.files.made import CONFIG, WEIGHTS, PeftModel, adapted, assert_untouched, build, edit, rewrite, state
from tests.model.zoo import assert_same, liven, logits, tied

LIBRARIES = [PeftModel, peft.PeftModel]


def by_module(kind):
    return kind.__module__.partition(".")[0]


def masked():
    torch.manual_seed(0)
    config = tf.BertConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
        initializer_range=0.3,
    )  # fmt: skip
    return tf.BertForMaskedLM(config).eval()


CASES = {
    "adapted head": (lambda: build("llama"), dict(target_modules=["q_proj", "lm_head"])),
    "adapted tied head": (tied, dict(target_modules=["q_proj", "lm_head"])),
    "adapted head of T5": (lambda: build("t5"), dict(target_modules=["q", "lm_head"])),
    "adapted embedding": (lambda: build("llama"), dict(target_modules=["q_proj", "embed_tokens"])),
    "saved tied head": (tied, dict(target_modules=["q_proj"], modules_to_save=["lm_head"])),
    "saved embedding": (lambda: build("llama"), dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"])),
    "shared biases": (masked, dict(target_modules=["query"], bias="all")),
    "biases of the adapted": (masked, dict(target_modules=["query"], bias="lora_only")),
    "biases of saved modules": (
        lambda: build("bert"),
        dict(target_modules=["query"], bias="all", modules_to_save=["pooler", "classifier"]),
    ),
    "a task's classifier": (lambda: build("bert"), dict(target_modules=["query"], task_type="SEQ_CLS")),
    "tokens": (lambda: build("llama"), dict(target_modules=["q_proj"], trainable_token_indices=[1, 2])),
    "a parameter": (lambda: build("llama"), dict(target_modules=["k_proj"], target_parameters=["q_proj.weight"])),
    "weight decomposition": (lambda: build("llama"), dict(target_modules=["q_proj"], use_dora=True)),
    "Conv1D": (lambda: build("gpt2"), dict(target_modules=["c_attn"], fan_in_fan_out=True)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("embeddings", ["auto", True])
@pytest.mark.parametrize("writer", LIBRARIES, ids=by_module)
@pytest.mark.parametrize("case", CASES)
def test_either_loads_what_the_other_writes(case, writer, embeddings, tmp_path):
    make, options = CASES[case]
    torch.manual_seed(1)
    model = PeftModel._adopt(peft.get_peft_model(make(), peft.LoraConfig(r=4, **copy.deepcopy(options))))
    liven(model)
    expected = logits(model.eval())
    assert (expected - logits(make())).abs().max() > 1e-3
    (writer if type(model) is PeftModel else type(model)).save_pretrained(
        model, tmp_path, save_embedding_layers=embeddings
    )
    if options.get("bias") == "lora_only" and not any(
        "query" in k and "bias" in k for k in load_file(tmp_path / WEIGHTS)
    ):
        assert peft.__version__ < "0.21"  # PEFT before 0.21 does not find these biases
        return
    for reader in LIBRARIES:
        loaded = reader.from_pretrained(make(), tmp_path).eval()
        torch.testing.assert_close(logits(loaded), expected, rtol=1e-5, atol=1e-5)
    model.load_adapter(tmp_path, "default")
    if case != "a parameter" and "bias" not in options:  # PEFT accepts only one adapter of these
        model.load_adapter(tmp_path, "second")
        model.set_adapter("second")
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def resized(tmp_path):
    """A function that makes a model with a vocabulary larger than that of its base folder, with random new rows."""
    build("llama").save_pretrained(tmp_path / "base")

    def make(seed):
        model = tf.LlamaForCausalLM.from_pretrained(tmp_path / "base")
        torch.manual_seed(seed)
        model.resize_token_embeddings(101)
        return model.eval()

    return make


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("saved", [None, ["embed_tokens"], ["embed_tokens", "lm_head"]])
@pytest.mark.parametrize("writer", LIBRARIES, ids=by_module)
def test_a_resized_vocabulary_is_saved_with_the_adapter(writer, saved, resized, tmp_path):
    ids = torch.tensor([[98, 5, 99, 100, 3]])  # new tokens; only the adapter's file has their rows
    model = PeftModel._adopt(
        peft.get_peft_model(resized(1), peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=saved))
    )
    liven(model)
    expected = logits(model.eval(), ids)
    writer.save_pretrained(model, tmp_path / "adapter")
    for reader in LIBRARIES:
        loaded = reader.from_pretrained(resized(2), tmp_path / "adapter").eval()
        torch.testing.assert_close(logits(loaded, ids), expected, rtol=1e-5, atol=1e-5)
    base = build("llama")
    before = state(base)
    with pytest.raises(ValueError, match=r"has shape \(101, 32\), this model and config expect \(97, 32\)"):
        PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert_untouched(base, before)


def cache_of(tmp_path, monkeypatch, values):
    """Creates a hub cache with this config.json of me/base."""
    snapshot = tmp_path / "cache" / "models--me--base" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(values))
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.filterwarnings("ignore:Could not find a config")
@pytest.mark.parametrize("values", [dict(vocab_size=97), dict(text_config=dict(vocab_size=97))], ids=["", "within"])
def test_a_resized_vocabulary_of_a_hubs_base_is_saved_with_a_warning(values, tmp_path, monkeypatch):
    cache_of(tmp_path, monkeypatch, values)
    base = build("llama")
    base.name_or_path = "me/base"
    model = adapted(base=base)
    model.save_pretrained(tmp_path / "same")
    assert not any("embed_tokens" in key for key in load_file(tmp_path / "same" / WEIGHTS))
    base = build("llama")
    base.name_or_path = "me/base"
    base.resize_token_embeddings(101)
    model = adapted(base=base)
    with pytest.warns(
        UserWarning, match="the vocabulary size of this model differs from that of its base: the embeddings are"
    ):
        model.save_pretrained(tmp_path / "resized")
    found = load_file(tmp_path / "resized" / WEIGHTS)
    assert torch.equal(found["base_model.model.model.embed_tokens.weight"], base.model.embed_tokens.weight)
    assert torch.equal(found["base_model.model.lm_head.weight"], base.lm_head.weight)
    model.save_pretrained(tmp_path / "resized", save_embedding_layers=False)
    assert not any("embed_tokens" in key for key in load_file(tmp_path / "resized" / WEIGHTS))


def test_embeddings_that_peft_would_not_find_by_their_names_are_loaded(tmp_path):
    """The file has the plain name of an embedding that the config adapts; PEFT would skip the tensor silently."""
    model = adapted(target_modules=["q_proj", "embed_tokens"])
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    trained = torch.randn(97, 32)

    def plain(tensors):
        renamed = {key.replace("embed_tokens.base_layer.", "embed_tokens."): t for key, t in tensors.items()}
        return renamed | {"base_model.model.model.embed_tokens.weight": trained}

    rewrite(tmp_path, plain)
    loaded = PeftModel.from_pretrained(build("llama"), tmp_path)
    assert torch.equal(loaded.base_model.model.model.embed_tokens.base_layer.weight, trained)


def clip():
    torch.manual_seed(0)
    text = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    vision = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=8, patch_size=4
    )
    return tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()


def convnext():
    torch.manual_seed(0)
    return tf.ConvNextForImageClassification(tf.ConvNextConfig(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2)).eval()


def wav2vec2():
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, conv_dim=(8,))
    rest = dict(
        conv_stride=(5,), conv_kernel=(10,), num_feat_extract_layers=1, vocab_size=20, num_conv_pos_embeddings=4
    )
    return tf.Wav2Vec2ForCTC(tf.Wav2Vec2Config(**sizes, **rest, num_conv_pos_embedding_groups=2)).eval()


@pytest.mark.parametrize(
    "make, targets",
    [(clip, ["q_proj"]), (convnext, ["pwconv1"]), (wav2vec2, ["q_proj"])],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_a_model_without_token_embeddings_is_saved_and_loaded(make, targets, tmp_path):
    model = PeftModel(make(), peft.LoraConfig(r=2, target_modules=targets, bias="all", init_lora_weights=False))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make(), tmp_path)
    expected = model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
    rewrite(tmp_path, lambda t: t.update(extra=torch.zeros(1)))
    with pytest.raises(ValueError, match="has extra, which this model and config have no place for"):
        PeftModel.from_pretrained(make(), tmp_path)


def test_a_classifier_of_another_name_does_not_hinder_loading(tmp_path):
    def bart():
        torch.manual_seed(0)
        config = tf.BartConfig(
            vocab_size=97, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, eos_token_id=9, init_std=0.3,
        )  # fmt: skip
        return tf.BartForSequenceClassification(config).eval()

    torch.manual_seed(1)
    model = peft.get_peft_model(bart(), peft.LoraConfig(target_modules=["q_proj"], task_type="SEQ_CLS"))
    liven(model)
    model.eval().save_pretrained(tmp_path)
    ids = torch.tensor([[5, 3, 9], [4, 8, 9]])
    expected = model(input_ids=ids).logits
    assert_same(PeftModel.from_pretrained(bart(), tmp_path)(input_ids=ids).logits, expected)
    assert (expected - bart()(input_ids=ids).logits).abs().max() > 1e-3


# The fields that PEFT 0.5 wrote.
FIELDS_05 = """auto_mapping base_model_name_or_path bias fan_in_fan_out inference_mode init_lora_weights layers_pattern
layers_to_transform lora_alpha lora_dropout modules_to_save peft_type r revision target_modules task_type""".split()


def test_a_file_of_peft_0_5_loads(tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({name: values[name] for name in FIELDS_05}, indent=2))
    assert torch.equal(logits(PeftModel.from_pretrained(build("llama"), tmp_path).eval()), logits(model))


def test_a_module_whose_own_values_are_infinite_is_saved_and_loaded(tmp_path):
    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
            self.head.register_buffer("mask", torch.full((4,), float("-inf")))

    model = PeftModel(Masked(), peft.LoraConfig(target_modules=["inner"], modules_to_save=["head"]))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(Masked(), tmp_path)
    assert "base_model.model.head.modules_to_save.default.mask" in loaded.state_dict()
    loaded.load_adapter(tmp_path, "default")
    for other in (float("inf"), float("nan")):
        rewrite(tmp_path, lambda t, value=other: t | {"base_model.model.head.mask": torch.full((4,), value)})
        with pytest.raises(ValueError, match="head.mask: 4 of 4 values are NaN or infinite"):
            loaded.load_adapter(tmp_path, "default")


def test_checkpoints_of_an_earlier_structure_load_by_the_models_own_mapping(tmp_path):
    adapted().save_pretrained(tmp_path)
    expected = logits(adapted())
    rewrite(tmp_path, lambda t: {key.replace("model.model.layers", "model.layers"): v for key, v in t.items()})
    base = build("llama")
    base._checkpoint_conversion_mapping = {"^layers": "model.layers"}
    assert torch.equal(logits(PeftModel.from_pretrained(base, tmp_path).eval()), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["BITFIT", "BOTTLENECK"])
def test_files_of_this_packages_methods_load_by_their_old_names(method, tmp_path):
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    import pypeft_fast.model.tuners  # noqa: F401 — registers the methods with PEFT

    model = PeftModel(build("llama"), PEFT_TYPE_TO_CONFIG_MAPPING[method]())
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter)
    model.eval().save_pretrained(tmp_path)
    new = load_file(tmp_path / WEIGHTS)

    def old(key):
        key = key.replace("bitfit_bias", "bias")
        for part in ("down", "up", "norm"):
            key = key.replace(f"bottleneck_adapter_{part}", f"bottleneck.{part}")
        return key

    rewrite(tmp_path, lambda t: {old(key): value for key, value in t.items()})
    assert not set(new) & set(load_file(tmp_path / WEIGHTS))
    loaded = PeftModel.from_pretrained(build("llama"), tmp_path).eval()
    loaded.load_adapter(tmp_path, "default")
    assert torch.equal(logits(loaded), logits(model)) and not torch.equal(logits(model), logits(build("llama")))


def test_a_new_config_field_with_its_default_value_is_accepted(tmp_path):
    adapted().save_pretrained(tmp_path)
    edit(tmp_path, some_config_of_2027=None, use_quantum=None, quantum_depth=7)
    with pytest.warns(UserWarning, match="are ignored: quantum_depth, some_config_of_2027, use_quantum"):
        PeftModel.from_pretrained(build("llama"), tmp_path)
