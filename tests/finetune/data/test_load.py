"""Reading JSON lines and the topics of chatterbot: all records or one clear error."""

import json

import pytest

from pypeft_fast.finetune.data.chatterbot import chatterbot_topics
from pypeft_fast.finetune.data.files import read_jsonl
from pypeft_fast.finetune.data.load import load_data
from pypeft_fast.finetune.data.records import Example
from pypeft_fast.finetune.errors import UserError

DIGITS, DEEP = "1" * 10_000, "[" * 100_000


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
    pair = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    assert second == Example(pair, f"{path}:3")


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
    assert len(examples) == 10  # the topic has 1050 entries
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


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (DIGITS, "too many digits"),
        (f'{{"prompt": "a", "completion": "b", "id": {DIGITS}}}', "too many digits"),
        (DEEP, "nested too deeply"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ('{"prompt": "\\ud800", "completion": "b"}', "half of a surrogate pair"),
        ('{"prompt": "a", "completion": "b\\udfff"}', "message 2 (assistant) holds '\\udfff'"),
        ('{"messages": [{"role": ["user"], "content": "a"}]}', "the role ['user']"),
        ('{"messages": [{"role": "' + "x" * 100_000 + '", "content": "a"}]}', "100002 characters"),
    ],
)
def test_a_line_of_data(tmp_path, line, says):
    path = tmp_path / "data.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(UserError) as error:
        read_jsonl(path)
    text = str(error.value)
    assert text.startswith(f"{path}:1: ") and says in text and len(text) < 1000
