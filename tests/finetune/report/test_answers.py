"""The questions and answers of report.html."""

import shutil

import pytest

from pypeft_fast.finetune.base_models import load_base
from pypeft_fast.finetune.chat import Chat
from pypeft_fast.finetune.data.records import Example
from pypeft_fast.finetune.report import answers
from pypeft_fast.finetune.report.answers import answered, first_question, spread, written


def example(*texts, first="user"):
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return Example(tuple(messages), "x:1")


def test_questions_are_spread_and_differ():
    examples = [example(f"q{i // 2}", "a") for i in range(20)]  # each question twice
    assert [its.messages[0]["content"] for its in spread(examples, 3)] == ["q0", "q3", "q6"]
    assert len(spread(examples, 50)) == 10 and spread(examples, 0) == []
    assert spread([example("an answer first", "b", first="assistant")], 3) == []


def test_a_question_with_a_system_message():
    messages = ({"role": "system", "content": "be nice"}, *example("q", "a", "q2", "a2").messages)
    asked = first_question(Example(messages, "x:1"))
    assert asked == list(messages[:2]) and written(asked) == "system: be nice\nuser: q"
    assert written(first_question(example("q", "a"))) == "q"


@pytest.fixture(scope="module")
def adapted(tiny_model, tiny_adapter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "tiny"
    shutil.copytree(tiny_adapter, folder)
    chat = Chat(*load_base(str(tiny_model)), {"tiny": folder})
    return chat.model, chat.tokenizer, chat


def test_the_answers_are_those_of_chat(adapted, monkeypatch):
    monkeypatch.setattr(answers, "TOKENS", 6)
    model, tokenizer, chat = adapted
    (found,) = answered(model, tokenizer, [example("why", "because")], 1)
    options = dict(max_new_tokens=6, do_sample=False)
    expected = {}
    for name in (None, "tiny"):
        with chat.using(name):
            expected[name] = chat.answer([{"role": "user", "content": "why"}], **options)
    chat.use("tiny")
    assert (found.question, found.expected) == ("why", "because")
    assert (found.base, found.adapter) == (f"{expected[None]} …", f"{expected['tiny']} …")  # both are cut
    assert found.base != found.adapter


def test_an_answer_ends_when_the_time_is_over(adapted, monkeypatch):
    monkeypatch.setattr(answers, "SECONDS", -1.0)
    model, tokenizer, chat = adapted
    (found,) = answered(model, tokenizer, [example("why", "because")], 1)
    with chat.using("tiny"):
        first = chat.answer([{"role": "user", "content": "why"}], max_new_tokens=1, do_sample=False)
    assert found.adapter == f"{first} …"


def test_no_question_is_answered_after_a_time(adapted):
    model, tokenizer, _ = adapted
    assert answered(model, tokenizer, [example("why", "because")], 1, until=0.0) == []


def test_a_reason_takes_the_place_of_an_answer(adapted, monkeypatch):
    model, tokenizer, _ = adapted
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('no') }}")
    (found,) = answered(model, tokenizer, [example("why", "because")], 1)
    assert found.base.startswith("(no answer: the tokenizer's chat template refuses a message of the role user")
