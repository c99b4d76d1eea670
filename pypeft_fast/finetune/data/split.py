"""Splits examples into training and held-out examples, so that no held-out question occurs in training."""

import hashlib

from ..errors import UserError
from .records import Example


def leaked(train: list[Example], held_out: list[Example]) -> int:
    """How many held-out examples have a question that occurs in the training examples."""
    known = {question for example in train for question in example.questions}
    return sum(any(question in known for question in example.questions) for example in held_out)


def split(examples: list[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(train, held out): about `fraction` of the examples are held out; no held-out question occurs in training.

    Examples that share a question stay together. The choice depends only on the seed and the questions, not on the
    order in the file. With fraction 0 no example is held out.

    Raises UserError if there is only one example, or if shared questions connect all examples.
    """
    if fraction == 0:
        return examples, []
    groups = _groups_by_question(examples)

    def rank(group):
        first = min(question for i in group for question in examples[i].questions)
        return hashlib.sha256(f"{seed}\n{first}".encode()).digest()

    groups.sort(key=rank)
    room = max(1, round(fraction * len(examples)))
    held_out: set[int] = set()
    for group in groups:
        if len(held_out) + len(group) <= room:
            held_out.update(group)
    if not held_out and len(groups) > 1:
        held_out.update(min(groups, key=len))
    if not held_out or len(held_out) == len(examples):
        raise UserError(
            f"cannot hold out a part of {len(examples)} example(s) in {len(groups)} group(s) of shared questions; "
            "add data, or train without a held-out set: `eval_fraction` 0"
        )
    train = [e for i, e in enumerate(examples) if i not in held_out]
    return train, [e for i, e in enumerate(examples) if i in held_out]


def _groups_by_question(examples: list[Example]) -> list[list[int]]:
    """Groups of indices of the examples; examples that share a question are in one group (union-find)."""
    parent = list(range(len(examples)))

    def root(i):
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, example in enumerate(examples):
        for question in example.questions:
            parent[root(i)] = root(first.setdefault(question, i))
    groups: dict[int, list[int]] = {}
    for i in range(len(examples)):
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())
