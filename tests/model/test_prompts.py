"""Prompt and prefix tuning against PEFT: values, gradients, files, generation; and right under left padding."""

import copy

import peft
import pytest
import torch
from safetensors.torch import load_file

import pypeft_fast as pf
from tests.model.zoo import IDS, adapted, assert_same, build, logits

TASK = {"llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "bert": "SEQ_CLS", "t5": "SEQ_2_SEQ_LM"}
VARIANTS = {
    "prompt": ("PromptTuningConfig", {}),
    "prompt of words": ("PromptTuningConfig", dict(prompt_tuning_init="SAMPLE_VOCAB")),
    "prefix": ("PrefixTuningConfig", {}),
    "projected prefix": ("PrefixTuningConfig", dict(prefix_projection=True, encoder_hidden_size=16)),
    "zero prefix": ("PrefixTuningConfig", dict(init_weights="zero")),
}
CASES = [(kind, name) for kind in TASK for name in VARIANTS]
P = 5


def prompted(library, kind, name, seed=3):
    """The architecture with virtual tokens; one seed gives the same in either library."""
    config, options = VARIANTS[name]
    torch.manual_seed(seed)
    config = getattr(library, config)(num_virtual_tokens=P, task_type=TASK[kind], **options)
    model = build(kind)
    torch.manual_seed(seed)
    return library.get_peft_model(model, config).eval()


def of_the_prompt(model):
    """{PEFT's name: parameter} of what trains beside the classifier."""
    named = {n.removeprefix("base_model.prompts."): p for n, p in model.named_parameters() if p.requires_grad}
    return {n: p for n, p in named.items() if "classifier" not in n}


@pytest.mark.parametrize("kind,name", CASES)
def test_same_parameters_logits_and_gradients(kind, name):
    ours, theirs = prompted(pf, kind, name), prompted(peft, kind, name)
    mine, yours = of_the_prompt(ours), of_the_prompt(theirs)
    parts = [
        "embedding.weight",
        *([f"transform.{i}.{k}" for i in (0, 2) for k in ("weight", "bias")] * (name[:4] == "proj")),
    ]
    assert set(mine) == set(yours) == {f"prompt_encoder.default.{part}" for part in parts}
    classifiers = [n for n, p in ours.named_parameters() if p.requires_grad and "classifier" in n]
    assert len(classifiers) == (2 if kind == "bert" else 0)
    outputs = [logits(model) for model in (ours, theirs)]
    assert_same(*outputs)
    for output in outputs:
        output.square().mean().backward()
    for key, parameter in mine.items():
        assert torch.equal(parameter, yours[key])
        grad = yours[key].grad
        torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=1e-6 + 1e-4 * grad.abs().max().item())
    assert any(p.grad.any() for p in mine.values())
    with ours.disable_adapter():
        assert_same(logits(ours), logits(build(kind)))
    assert_same(logits(ours.unload()), logits(build(kind)))


@pytest.mark.parametrize("kind,name", CASES)
def test_files_of_either_load_in_the_other(kind, name, tmp_path):
    ours, theirs = prompted(pf, kind, name), prompted(peft, kind, name)
    expected = logits(theirs)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    mine, yours = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    assert set(mine) == set(yours) and "prompt_embeddings" in mine
    configs = [pf.PeftConfig.from_pretrained(tmp_path / who) for who in ("ours", "theirs")]
    configs[0].peft_version = configs[1].peft_version
    differing = {k for k, v in configs[0].to_dict().items() if v != configs[1].to_dict()[k]}
    assert differing <= {"modules_to_save"}, differing  # PEFT writes the classifier's names down
    for reader, folder in ((pf, "theirs"), (pf, "ours"), (peft, "ours")):
        loaded = reader.PeftModel.from_pretrained(build(kind), tmp_path / folder).eval()
        assert_same(logits(loaded), expected)
        assert not any(p.requires_grad for p in loaded.parameters()) or reader is peft


@pytest.mark.parametrize("options", [{}, dict(use_cache=False), dict(num_beams=2)], ids=["cache", "none", "beams"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_generation_agrees_with_peft(kind, name, options):
    options = options | dict(max_new_tokens=6, do_sample=False, pad_token_id=0)
    inputs = dict(input_ids=IDS, attention_mask=torch.ones_like(IDS))
    ours = prompted(pf, kind, name)
    found = ours.generate(**inputs, **options)
    # PEFT fails on Llama there: it inserts nothing after the first step.
    if (kind, name, options.get("use_cache")) == ("llama", "prefix", False):
        assert torch.equal(found, ours.generate(**inputs, **(options | {"use_cache": True})))
    else:
        assert torch.equal(found, prompted(peft, kind, name).generate(**inputs, **options))
    with ours.disable_adapter():
        base = ours.generate(**inputs, **options)
        assert torch.equal(base, build(kind).generate(**inputs, **options))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("name", ["prompt", "prefix", "projected prefix"])
def test_training_without_a_cache_is_the_same(kind, name):
    """A prefix lives in a cache, which is made for it alone then."""
    outcomes = []
    for options in ({}, dict(use_cache=False)):
        model = prompted(pf, kind, name)
        output = logits(model, **options)
        output.square().mean().backward()
        outcomes.append((output, {n: p.grad for n, p in of_the_prompt(model).items()}))
    (output, gradients), (other, others) = outcomes
    assert_same(output, other)
    assert any(grad.any() for grad in gradients.values())
    for key, grad in gradients.items():
        torch.testing.assert_close(others[key], grad, rtol=0, atol=1e-6 + 1e-4 * grad.abs().max().item())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_left_padding_changes_nothing(kind, name):
    model = prompted(pf, kind, name)
    ids = torch.cat([torch.zeros(3, 4, dtype=torch.long), IDS], dim=1)
    mask = (torch.arange(11) >= 4).long().expand(3, -1)
    padded = model(input_ids=ids, attention_mask=mask).logits[:, -7:]
    assert_same(padded, logits(model)[:, -7:])
    options = dict(max_new_tokens=5, do_sample=False, pad_token_id=0)
    plain = model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **options)
    for cache in (True, False):
        found = model.generate(input_ids=ids, attention_mask=mask, use_cache=cache, **options)
        assert torch.equal(found[:, 4:], plain)


def test_labels_and_positions_are_shifted():
    model = prompted(pf, "llama", "prompt")
    output = model(input_ids=IDS, labels=IDS)
    scores = output.logits[:, P - 1 : -1].flatten(0, 1)
    assert_same(output.loss, torch.nn.functional.cross_entropy(scores, IDS.flatten()))


def test_a_text_starts_the_prompt(tmp_path):
    from tests.cli.conftest import make_tokenizer

    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    text = "a"
    tokens = tokenizer(text)["input_ids"]
    options = dict(prompt_tuning_init="TEXT", prompt_tuning_init_text=text, tokenizer_name_or_path=str(tmp_path))
    base = build("t5")
    words = torch.nn.Embedding(len(tokenizer), 32)
    base.set_input_embeddings(words)
    config = pf.PromptTuningConfig(num_virtual_tokens=3, token_dim=32, task_type="SEQ_2_SEQ_LM", **options)
    model = pf.get_peft_model(base, config)
    expected = words.weight[torch.tensor((tokens * 6)[:6])]
    assert torch.equal(model.base_model.prompts.prompt_encoder["default"].embedding.weight, expected)
    model.save_pretrained(tmp_path / "adapter")
    config.prompt_tuning_init_text = "a long text about a lot of things"
    with pytest.raises(ValueError, match="tokens; num_virtual_tokens=3 takes 1 to 6 of them"):
        pf.get_peft_model(build("t5"), config)
    config.prompt_tuning_init_text, other = text, build("t5")
    other.set_input_embeddings(torch.nn.Embedding(max(tokens), 32))
    with pytest.raises(ValueError, match=f"gives token {max(tokens)}, and the model has embeddings of {max(tokens)}"):
        pf.get_peft_model(other, config)
    config.tokenizer_name_or_path = str(tmp_path / "none")
    with pytest.raises(ValueError, match="tokenizer_name_or_path=.*none' gives no tokenizer"):
        pf.get_peft_model(build("t5"), config)


BAD = [
    ("PromptTuningConfig", {}, "num_virtual_tokens=None must be an integer"),
    ("PromptTuningConfig", dict(num_virtual_tokens=2, prompt_tuning_init="WORDS"), "must be one of TEXT, SAMPLE_VOCAB"),
    (
        "PromptTuningConfig",
        dict(num_virtual_tokens=2, prompt_tuning_init="TEXT"),
        "tokenizer_name_or_path=None must be",
    ),
    ("PromptTuningConfig", dict(num_virtual_tokens=2, tokenizer_kwargs={"a": 1}), "is for prompt_tuning_init='TEXT'"),
    ("PrefixTuningConfig", dict(num_virtual_tokens=0), "num_virtual_tokens=0 must be an integer of at least 1"),
    (
        "PrefixTuningConfig",
        dict(num_virtual_tokens=2, init_weights="one"),
        "init_weights='one' must be one of None, zero",
    ),
]


@pytest.mark.parametrize("config,options,words", BAD)
def test_bad_configs(config, options, words):
    with pytest.raises(ValueError, match=words):
        getattr(pf, config)(**options)


def test_models_that_cannot(tmp_path):
    config = pf.PrefixTuningConfig(num_virtual_tokens=2)
    model = build("llama")
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="does not work with gradient checkpointing"):
        pf.get_peft_model(model, config)
    model = prompted(pf, "llama", "prefix").train()
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="does not work with gradient checkpointing, which drops the cache"):
        logits(model)
    import transformers as tf

    small = tf.DistilBertModel(tf.DistilBertConfig(vocab_size=97, dim=32, n_layers=1, n_heads=4, hidden_dim=48))
    with pytest.raises(ValueError, match="needs a model that takes past_key_values; DistilBertModel does not"):
        pf.get_peft_model(small, config)
    with pytest.raises(ValueError, match="token_dim=8 needs input embeddings of that width; the model has of 32"):
        pf.get_peft_model(build("llama"), pf.PromptTuningConfig(num_virtual_tokens=2, token_dim=8))
    for name in ("prompt", "prefix"):
        with pytest.raises(ValueError, match="need a cache that grows; cache_implementation='static' is not supported"):
            prompted(pf, "llama", name).generate(input_ids=IDS, max_new_tokens=3, cache_implementation="static")


def test_a_projected_prefix_cannot_be_trained_on_from_its_file(tmp_path):
    model = prompted(pf, "llama", "projected prefix")
    model.save_pretrained(tmp_path)
    words = "holds what the projection computed, not the projection.*is_trainable=False.*prefix_projection=False"
    with pytest.raises(ValueError, match=words):
        pf.PeftModel.from_pretrained(build("llama"), tmp_path, is_trainable=True)
    with pytest.raises(ValueError, match=words):  # as Trainer resumes
        model.load_adapter(tmp_path, "default", is_trainable=True)
    loaded = pf.PeftModel.from_pretrained(build("llama"), tmp_path)
    assert_same(logits(loaded), logits(model))
    with pytest.raises(ValueError, match=words):
        loaded.load_adapter(tmp_path, "second", is_trainable=True)
    assert list(loaded.peft_config) == ["default"]


def test_a_wrapped_model_is_not_wrapped_again_and_a_copy_is_its_own():
    model = prompted(pf, "llama", "prompt")
    with pytest.raises(ValueError, match="has adapters already"):
        pf.get_peft_model(model.get_base_model(), pf.PromptTuningConfig(num_virtual_tokens=2))
    twin, expected = copy.deepcopy(model), logits(model)
    twin.base_model.prompts.prompt_encoder["default"].embedding.weight.data += 1
    assert torch.equal(logits(model), expected) and not torch.equal(logits(twin), expected)
    bare = model.unload()
    assert_same(logits(bare), logits(build("llama")))
    pf.get_peft_model(bare, pf.PromptTuningConfig(num_virtual_tokens=2))


def test_virtual_tokens_cannot_be_merged():
    model = prompted(pf, "llama", "prompt")
    with pytest.raises(ValueError, match="'default' puts virtual tokens before the text, which cannot be merged"):
        model.merge_and_unload()


def test_one_prompt_at_a_time_beside_lora():
    model = prompted(pf, "llama", "prefix")
    expected = logits(model)
    model.add_adapter("prompt", pf.PromptTuningConfig(num_virtual_tokens=3))
    model.add_adapter("lora", pf.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    with pytest.raises(ValueError, match="default and prompt each put virtual tokens before the text"):
        model.set_adapter(["default", "prompt"])
    assert_same(logits(model), expected)
    model.set_adapter("prompt")
    assert logits(model).shape[1] == 10
    model.set_adapter(["lora", "default"])
    both = logits(model)
    assert both.shape == expected.shape and (both - expected).abs().max() > 1e-3
    assert {n.split(".")[1] for n, p in model.named_parameters() if p.requires_grad} == {"model", "prompts"}
    with pytest.raises(ValueError, match="adapter_names names 'prompt'"):
        logits(model, adapter_names=["prompt", "lora", "lora"])
    assert torch.equal(logits(model, adapter_names=["__base__"] * 3), logits(build("llama")))
    model.delete_adapter("default")
    model.delete_adapter("lora")
    assert model.active_adapter == "prompt"


def test_another_methods_file_is_refused(tmp_path):
    adapted(pf, "llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds an adapter of LORA, but 'default' is one of PREFIX_TUNING"):
        prompted(pf, "llama", "prefix").load_adapter(tmp_path, "default")
    with pytest.raises(ValueError, match="holds a LoraConfig, not a PrefixTuningConfig"):
        pf.PrefixTuningConfig.from_pretrained(tmp_path)
