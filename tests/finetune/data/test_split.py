"""The split: no held-out question may occur in training."""

import random

import pytest

from pypeft_fast.finetune.data.load import load_data
from pypeft_fast.finetune.data.records import Example
from pypeft_fast.finetune.data.split import split
from pypeft_fast.finetune.errors import UserError


def example(*texts, source="x:1", system=None):
    start = ({"role": "system", "content": system},) if system else ()
    turns = tuple({"role": "assistant" if i % 2 else "user", "content": t} for i, t in enumerate(texts))
    return Example(start + turns, source)


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
    with pytest.raises(UserError, match="`eval_fraction` 0"):
        split(same, 0.5, 0)
