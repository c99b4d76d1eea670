"""The labels are exactly the tokens of the answers and their end tokens, in every kind of conversation."""

import copy

import pytest
import torch

from pypeft_fast.finetune.data.records import Example
from pypeft_fast.finetune.data.rendering import render_prompt
from pypeft_fast.finetune.data.tokens import IGNORE, Collator, Encoded, encode, encode_all
from pypeft_fast.finetune.errors import UserError

CHAT = Example(
    (
        {"role": "system", "content": "You are a small model."},
        {"role": "user", "content": "what is the capital of france?\nwhy?"},
        {"role": "assistant", "content": "paris — it is.\n"},
        {"role": "user", "content": "paris — it is.\n"},  # the user repeats the answer: not a target
        {"role": "assistant", "content": "  why not"},
    ),
    "x:1",
)
PAIR = Example(({"role": "user", "content": "sky "}, {"role": "assistant", "content": "blue light"}), "x:2")


def targets(encoded):
    """The runs of consecutive targets; checks that every label equals its token or is ignored."""
    runs, inside = [], False
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        assert label in (token, IGNORE)
        if label != IGNORE:
            runs.append([]) if not inside else None
            runs[-1].append(label)
        inside = label != IGNORE
    return runs


def test_targets_are_every_answer_with_its_end_token(tokenizer):
    encoded = encode(tokenizer, CHAT)
    said = [tokenizer.decode(run) for run in targets(encoded)]
    assert said == ["paris — it is.\n<|im_end|>", "  why not<|im_end|>"]
    assert tokenizer.decode(encoded.input_ids) == tokenizer.apply_chat_template(list(CHAT.messages), tokenize=False)


def test_what_precedes_the_targets_is_the_prompt_that_generation_will_see(tokenizer):
    encoded = encode(tokenizer, PAIR)
    first = next(i for i, label in enumerate(encoded.labels) if label != IGNORE)
    prompt = render_prompt(tokenizer, PAIR.messages[:1])
    assert encoded.input_ids[:first] == tokenizer(prompt, add_special_tokens=False)["input_ids"]


def test_a_tokenizer_that_starts_every_text_with_a_space():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["▁sky", "▁blue", "▁light", "▁", "a", "b", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    template = (
        "{% for m in messages %}{{ ' ' + m['content'] + ('</s>' if m['role'] == 'assistant' else '') }}{% endfor %}"
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", chat_template=template)
    pair = Example(({"role": "user", "content": "sky sky"}, {"role": "assistant", "content": "blue light"}), "x:1")
    encoded = encode(wrapped, pair)
    assert encoded.input_ids == wrapped(" sky sky blue light</s>")["input_ids"]
    assert [wrapped.convert_ids_to_tokens(run) for run in targets(encoded)] == [["▁blue", "▁light", "</s>"]]


def test_without_a_chat_template_a_pair_is_its_two_texts(tokenizer):
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    encoded = encode(plain, PAIR)
    assert plain.decode(encoded.input_ids) == "sky blue light<|im_end|>"
    assert [plain.decode(run) for run in targets(encoded)] == ["blue light<|im_end|>"]
    with pytest.raises(UserError, match="x:1: this tokenizer has no chat template"):
        encode(plain, CHAT)


def test_a_template_without_end_token_or_with_a_refusal(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}assistant: "
    with pytest.raises(UserError, match="x:1: .*renders message 3 differently"):
        encode(other, CHAT)
    other.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match="x:2: .*refuses it: roles must alternate"):
        encode(other, PAIR)
    other.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert [other.decode(run) for run in targets(encode(other, PAIR))] == ["blue light\n"]


ROLES = "{% for m in messages %}<|im_start|>{{ m['role'] }}<|im_end|>{% endfor %}"


@pytest.mark.parametrize("template", ["Hello!", "{{ '' }}", "{{ message }}", ROLES])
def test_a_template_that_writes_no_answer_is_an_error_that_says_what_to_write(tokenizer, template):
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    with pytest.raises(UserError, match=r"x:2: the chat template writes no answer: .*\{% for message in messages %\}"):
        encode_all(other, [PAIR], 512)


def test_a_template_whose_prompt_does_not_begin_the_conversation(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %} END"
    says = (
        "x:2: the chat template writes ' END' in the prompt of message 2 where the conversation .* has 'blue light EN"
    )
    with pytest.raises(UserError, match=says):
        encode(other, PAIR)


def test_cutting_keeps_an_answer_token_or_leaves_the_example_out(tokenizer):
    whole = encode(tokenizer, PAIR)
    first = next(i for i, label in enumerate(whole.labels) if label != IGNORE)
    for length in range(1, len(whole.input_ids) + 2):
        found = encode_all(tokenizer, [PAIR], length)
        assert (len(found.examples), found.dropped) == ((1, 0) if length > first else (0, 1))
        assert found.longest == len(whole.input_ids)
        assert found.cut == (len(found.examples) and length < found.longest)
        if found.examples:
            assert found.examples[0] == Encoded(whole.input_ids[:length], whole.labels[:length])


def test_a_batch_is_padded_on_the_right_and_padding_is_no_target(tokenizer):
    batch = Collator(pad_id=7)([Encoded([1, 2, 3], [IGNORE, 2, 3]), Encoded([4], [4])])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 7, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORE, 2, 3], [4, IGNORE, IGNORE]]
    assert all(t.dtype == torch.int64 for t in batch.values())
    assert Collator.of(tokenizer).pad_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
