"""Prompt and prefix tuning, which run in PEFT, on our PeftModel: training, files, generation, cache."""

import peft
import pytest
import torch
from transformers import DynamicCache

import pypeft_fast as pf
from tests.model.zoo import IDS, assert_same, build, logits

TASK = {"llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "bert": "SEQ_CLS", "t5": "SEQ_2_SEQ_LM"}
CONFIGS = {"prompt": "PromptTuningConfig", "prefix": "PrefixTuningConfig"}


def prompted(library, kind, name):
    """The architecture with virtual tokens; the values are the same in both libraries."""
    config = getattr(library, CONFIGS[name])(num_virtual_tokens=5, task_type=TASK[kind])
    model = build(kind)
    torch.manual_seed(3)
    return library.get_peft_model(model, config).eval()


@pytest.mark.parametrize("kind", list(TASK))
@pytest.mark.parametrize("name", list(CONFIGS))
def test_trains_saves_and_loads_in_either_library(kind, name, tmp_path):
    outcomes = []
    for library in (pf, peft):
        model = prompted(library, kind, name)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=10)
        output = logits(model)
        output.square().mean().backward()
        optimizer.step()
        assert (logits(model) - output).abs().max() > 1e-5
        model.save_pretrained(tmp_path / library.__name__)
        outcomes.append(logits(model))
    assert type(model).__name__ == type(prompted(pf, kind, name)).__name__
    assert_same(*outcomes)
    for reader, folder in ((pf, "peft"), (pf, "pypeft_fast"), (peft, "pypeft_fast")):
        loaded = reader.PeftModel.from_pretrained(build(kind), tmp_path / folder).eval()
        assert isinstance(loaded, pf.PeftModel) == (reader is pf)
        assert_same(logits(loaded), outcomes[0])
        if kind != "bert":  # PEFT's disable_adapter needs a method of generating models
            with loaded.disable_adapter():
                assert_same(logits(loaded), logits(build(kind)))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_generates_as_pefts(kind, name):
    options = dict(attention_mask=torch.ones_like(IDS), max_new_tokens=6, do_sample=False, pad_token_id=0)
    ours, theirs = prompted(pf, kind, name), prompted(peft, kind, name)
    assert torch.equal(ours.generate(input_ids=IDS, **options), theirs.generate(input_ids=IDS, **options))
    if (kind, name) != ("t5", "prompt"):  # there PEFT's generate uses the prompt even if disabled
        with ours.disable_adapter():
            assert torch.equal(ours.generate(input_ids=IDS, **options), build(kind).generate(IDS, **options))


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_cache_of_an_earlier_turn_is_refused_and_an_empty_one_is_not(name):
    """With a filled cache PEFT cuts the text at the length of the cache plus virtual tokens, which is another text."""
    model = prompted(pf, "llama", name)
    options = dict(max_new_tokens=3, do_sample=False, pad_token_id=0)
    fresh = model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **options)
    empty, filled = DynamicCache(), DynamicCache()
    found = model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), past_key_values=empty, **options)
    assert torch.equal(found, fresh)
    with model.disable_adapter():
        text = model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), past_key_values=filled, **options)
    later = dict(input_ids=text, attention_mask=torch.ones_like(text), past_key_values=filled, **options)
    with pytest.raises(ValueError, match=f"past_key_values holds {filled.get_seq_length()} tokens"):
        model.generate(**later)
    with model.disable_adapter():
        assert model.generate(**later).shape[1] == text.shape[1] + 3


def test_a_decoder_that_classifies_by_the_last_place_refuses_padding_there():
    import transformers as tf

    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, pad_token_id=0
    )
    base = tf.LlamaForSequenceClassification(config).eval()
    model = pf.get_peft_model(base, pf.PromptTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS")).eval()
    mask = torch.ones_like(IDS)
    mask[1, -2:] = 0
    with pytest.raises(ValueError, match="pad on the left"):
        model(input_ids=IDS, attention_mask=mask)
    model(input_ids=IDS, attention_mask=mask.flip(1))
