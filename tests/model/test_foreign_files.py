"""What PEFT writes into an adapter's file beyond lora_A and lora_B, and what safetensors will not write as it is."""

import copy
import json

import peft
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file

import pypeft_fast as pf
from pypeft_fast.model import files
from tests.model.zoo import adapted, assert_same, build, liven, logits

LIBRARIES = [pf, peft]
WEIGHTS = "adapter_model.safetensors"


def tied():
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        tie_word_embeddings=True,
    )  # fmt: skip
    return tf.LlamaForCausalLM(config).eval()


def masked():
    torch.manual_seed(0)
    config = tf.BertConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48
    )
    return tf.BertForMaskedLM(config).eval()


CASES = {
    "adapted head": (lambda: build("llama"), dict(target_modules=["q_proj", "lm_head"])),
    "adapted tied head": (tied, dict(target_modules=["q_proj", "lm_head"])),
    "adapted head of T5": (lambda: build("t5"), dict(target_modules=["q", "lm_head"])),
    "saved tied head": (tied, dict(target_modules=["q_proj"], modules_to_save=["lm_head"])),
    "saved embedding": (lambda: build("llama"), dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"])),
    "shared biases": (masked, dict(target_modules=["query"], bias="all")),
    "biases of saved modules": (
        lambda: build("bert"),
        dict(target_modules=["query"], bias="all", modules_to_save=["pooler", "classifier"]),
    ),
    "a task's classifier": (lambda: build("bert"), dict(target_modules=["query"], task_type="SEQ_CLS")),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("writer", LIBRARIES, ids=lambda library: library.__name__)
@pytest.mark.parametrize("case", CASES)
def test_either_loads_what_the_other_writes(case, writer, tmp_path):
    make, options = CASES[case]
    torch.manual_seed(1)
    model = writer.get_peft_model(make(), writer.LoraConfig(r=4, **copy.deepcopy(options)))
    liven(model)
    expected = logits(model.eval())
    assert (expected - logits(make())).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    for reader in LIBRARIES:
        loaded = reader.PeftModel.from_pretrained(make(), tmp_path).eval()
        torch.testing.assert_close(logits(loaded), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def resized(tmp_path):
    """A function that makes a model whose vocabulary is larger than its base folder's, its new rows at random."""
    build("llama").save_pretrained(tmp_path / "base")

    def make(seed):
        model = tf.LlamaForCausalLM.from_pretrained(tmp_path / "base")
        torch.manual_seed(seed)
        model.resize_token_embeddings(101)
        return model.eval()

    return make


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("saved", [None, ["embed_tokens"], ["embed_tokens", "lm_head"]])
@pytest.mark.parametrize("writer", LIBRARIES, ids=lambda library: library.__name__)
def test_a_resized_vocabulary_is_saved_with_the_adapter(writer, saved, resized, tmp_path):
    ids = torch.tensor([[98, 5, 99, 100, 3]])  # the new tokens, whose rows no other file holds
    config = writer.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=saved)
    model = writer.get_peft_model(resized(1), config)
    liven(model)
    expected = logits(model.eval(), ids)
    assert (logits(resized(1), ids) - logits(resized(2), ids)).abs().max() > 1e-3
    model.save_pretrained(tmp_path / "adapter")
    for reader in LIBRARIES:
        loaded = reader.PeftModel.from_pretrained(resized(2), tmp_path / "adapter").eval()
        torch.testing.assert_close(logits(loaded, ids), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"has shape \(101, 32\), this model and config expect \(97, 32\)"):
        pf.PeftModel.from_pretrained(build("llama"), tmp_path / "adapter")


def test_embeddings_are_written_as_asked(tmp_path, resized):
    model = adapted(pf, "llama")
    names = {"base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"}
    for option, there in (("auto", False), (False, False), (True, True)):
        model.save_pretrained(tmp_path / "adapter", save_embedding_layers=option)
        assert (names <= set(load_file(tmp_path / "adapter" / WEIGHTS))) == there
    model = pf.get_peft_model(resized(1), pf.LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    assert not names & set(load_file(tmp_path / "adapter" / WEIGHTS))
    with pytest.raises(ValueError, match="save_embedding_layers='always' must be True, False or 'auto'"):
        model.save_pretrained(tmp_path, save_embedding_layers="always")


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
    assert_same(pf.PeftModel.from_pretrained(bart(), tmp_path)(input_ids=ids).logits, expected)
    assert (expected - bart()(input_ids=ids).logits).abs().max() > 1e-3


def test_patterns_keep_their_order_in_the_file(tmp_path):
    # PEFT sorts them, and then cannot load what it wrote: only the file that we write is right.
    options = dict(rank_pattern={"z|q_proj": 3, "q_proj": 2}, alpha_pattern={"self_attn.q_proj": 5, "q_proj": 1})
    model = adapted(pf, "llama", **options)
    model.save_pretrained(tmp_path)
    assert list(json.loads((tmp_path / "adapter_config.json").read_text())["alpha_pattern"]) == [
        "self_attn.q_proj",
        "q_proj",
    ]
    for reader in LIBRARIES:
        assert_same(logits(reader.PeftModel.from_pretrained(build("llama"), tmp_path).eval()), logits(model))


def test_a_config_that_is_saved_alone_never_spoils_an_adapter(tmp_path, monkeypatch):
    model = adapted(pf, "llama")
    model.save_pretrained(tmp_path)
    write = files._write_config

    def half(path, config):
        write(path, config)
        path.write_text(path.read_text()[:20])
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_write_config", half)
    with pytest.raises(KeyboardInterrupt):
        pf.LoraConfig(r=7).save_pretrained(tmp_path)
    assert_same(logits(pf.PeftModel.from_pretrained(build("llama"), tmp_path)), logits(model))
    monkeypatch.undo()
    pf.LoraConfig(r=7).save_pretrained(tmp_path)
    assert pf.LoraConfig.from_pretrained(tmp_path).r == 7
