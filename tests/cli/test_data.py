"""Reading JSON lines and chatterbot's topics, and the split: nothing that is held out may occur in training."""

import json
import random

import pytest

from pypeft_fast.finetune.data.chatterbot import chatterbot_topics
from pypeft_fast.finetune.data.files import read_jsonl
from pypeft_fast.finetune.data.load import load_data
from pypeft_fast.finetune.data.records import Example
from pypeft_fast.finetune.data.split import split
from pypeft_fast.finetune.errors import UserError


def example(*texts, source="x:1", system=None):
    start = ({"role": "system", "content": system},) if system else ()
    turns = tuple({"role": "assistant" if i % 2 else "user", "content": t} for i, t in enumerate(texts))
    return Example(start + turns, source)


def test_both_forms_of_a_line_and_blank_lines(tmp_path):
    path = tmp_path / "data.jsonl"
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi — you?"},
        {"role": "assistant", "content": "Yes."},
    ]
    lines = [json.dumps({"messages": messages}, ensure_ascii=False), "", '{"prompt": "a", "completion": "b"}']
    path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    first, second = read_jsonl(path)
    assert list(first.messages) == messages and first.source == f"{path}:1"
    assert second == example("a", "b", source=f"{path}:3")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "a", "completion": ', "not JSON"),
        ("[1, 2]", "a JSON object is expected, not list"),
        ('{"text": "a"}', "the keys are: text"),
        ('{"prompt": "a", "completion": 3}', "message 2 (assistant) must have text"),
        ('{"prompt": "a", "completion": " "}', "message 2 (assistant) must have text"),
        ('{"messages": []}', "at least one message"),
        ('{"messages": [{"role": "user"}]}', "message 1 must be an object"),
        ('{"messages": [{"role": "bot", "content": "a"}]}', "'bot'; accepted are system, user, assistant"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "no answer to learn"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, says):
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n\n' + line + "\n")
    with pytest.raises(UserError) as error:
        read_jsonl(path)
    assert str(error.value).startswith(f"{path}:3: ") and says in str(error.value)


def test_no_file_nothing_in_it_or_not_text(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_jsonl(tmp_path / "none.jsonl")
    path = tmp_path / "data.jsonl"
    path.write_text("\n \n")
    with pytest.raises(UserError, match="no examples"):
        read_jsonl(path)
    path.write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(UserError, match="not UTF-8"):
        read_jsonl(path)


def test_a_topic_is_distinct_alternating_and_ends_with_an_answer():
    examples = load_data("chatterbot:tech_support")
    assert len(examples) == 10  # of 1050 entries
    pairs = {tuple(m["content"] for m in e.messages) for e in examples}
    assert ("My computer won't turn on.", "Check if it's plugged in and hold the power button for 10 seconds.") in pairs
    for topic in chatterbot_topics():
        examples = load_data(f"chatterbot:{topic}")
        assert len({e.messages[0]["content"] + e.messages[1]["content"] for e in examples}) > 0
        for e in examples:
            assert [m["role"] for m in e.messages] == ["user", "assistant"] * (len(e.messages) // 2)
        assert len({json.dumps(e.messages) for e in examples}) == len(examples)


def test_an_unknown_topic_lists_the_topics():
    with pytest.raises(UserError, match="no such topic; the topics are .*coding.*tech_support"):
        load_data("chatterbot:gardening")


@pytest.mark.parametrize("topic", ["tech_support", "coding", "ai", "conversations", "greetings"])
def test_no_held_out_question_is_trained_on(topic):
    examples = load_data(f"chatterbot:{topic}")
    for seed in range(5):
        train, held_out = split(examples, 0.2, seed)
        assert sorted(map(id, train + held_out)) == sorted(map(id, examples))
        assert train and 0.1 * len(examples) <= len(held_out) <= 0.3 * len(examples)
        assert not {q for e in train for q in e.questions} & {q for e in held_out for q in e.questions}


def test_the_split_depends_on_the_seed_not_on_the_order():
    examples = load_data("chatterbot:coding")
    shuffled = random.Random(1).sample(examples, len(examples))
    assert {e.source for e in split(examples, 0.2, 3)[1]} == {e.source for e in split(shuffled, 0.2, 3)[1]}
    assert {e.source for e in split(examples, 0.2, 3)[1]} != {e.source for e in split(examples, 0.2, 4)[1]}


def test_case_spacing_and_later_turns_do_not_hide_a_shared_question():
    linked = [example("How are  YOU", "fine"), example("hello", "hi", "how are you", "well"), example("Hello", "yes")]
    others = [example(f"question {i}", "answer") for i in range(5)]
    for seed in range(8):
        train, held_out = split(linked + others, 0.4, seed)
        assert len({id(e) for e in linked} & {id(e) for e in train}) in (0, 3)
    shared_system = [example(f"question {i}", "answer", system="Be brief.") for i in range(4)]
    assert len(split(shared_system, 0.25, 0)[1]) == 1


def test_nothing_to_hold_out():
    same = [example("a", "b"), example("A", "c")]
    assert split(same, 0, 0) == (same, [])
    with pytest.raises(UserError, match="--eval-fraction 0"):
        split(same, 0.5, 0)
