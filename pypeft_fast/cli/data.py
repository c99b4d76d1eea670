"""Training data: JSON lines or a topic of the chatterbot corpus, as conversations, split with nothing held out leaking.

A conversation is a list of {"role": ..., "content": ...}; a prompt with its completion is one of two messages.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from . import json_text
from .errors import UserError, need
from .terminal import cut, quoted

ROLES = ("system", "user", "assistant")
TOPIC_PREFIX = "chatterbot:"


@dataclass(frozen=True)
class Example:
    messages: tuple[dict[str, str], ...]
    source: str  # "file:line" or "topic:number", for messages about it

    @property
    def questions(self) -> tuple[str, ...]:
        """What the user says, without regard to case and spacing: the identity that keeps a split clean."""
        said = [m["content"] for m in self.messages if m["role"] == "user"]
        return tuple(" ".join(text.lower().split()) for text in said or [self.messages[0]["content"]])


def load_data(spec: str) -> list[Example]:
    """Reads `FILE.jsonl` or `chatterbot:TOPIC`.

    Raises UserError: no such file or topic (it lists the topics), a line that is not what it should be (with file
    and line number), nothing in it, or a package that is missing.
    """
    if spec.startswith(TOPIC_PREFIX):
        return read_chatterbot(spec.removeprefix(TOPIC_PREFIX))
    return read_jsonl(Path(spec))


def read_jsonl(path: Path) -> list[Example]:
    """One JSON object a line: {"messages": [{"role": ..., "content": ...}, ...]} or {"prompt": ..., "completion": ...}.

    Blank lines are skipped.
    """
    if not path.is_file():
        raise UserError(f"--data {path}: no such file; give a .jsonl file or {TOPIC_PREFIX}TOPIC")
    examples = []
    try:
        with open(path, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    examples.append(_parse(line, f"{path}:{number}"))
    except UnicodeDecodeError as error:
        raise UserError(f"--data {path} is not UTF-8 text: {error}") from error
    except OSError as error:
        raise UserError(f"--data {path} cannot be read: {error.strerror or error}") from error
    if not examples:
        raise UserError(f"--data {path} holds no examples: each line should be a JSON object")
    return examples


def _parse(line: str, source: str) -> Example:
    record = json_text.parse(line, source)
    if not isinstance(record, dict):
        raise UserError(f"{source}: a JSON object is expected, not {type(record).__name__}")
    if "messages" in record:
        return Example(_check_messages(record["messages"], source), source)
    if "prompt" in record and "completion" in record:
        pair = [
            {"role": "user", "content": record["prompt"]},
            {"role": "assistant", "content": record["completion"]},
        ]
        return Example(_check_messages(pair, source), source)
    keys = cut(", ".join(record) or "none")
    raise UserError(f'{source}: expected "messages", or "prompt" and "completion"; the keys are: {keys}')


def _check_messages(messages, source: str) -> tuple[dict[str, str], ...]:
    if not isinstance(messages, list) or not messages:
        raise UserError(f'{source}: "messages" must be a list of at least one message')
    checked = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise UserError(f'{source}: message {number} must be an object with "role" and "content"')
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise UserError(f"{source}: message {number} has the role {quoted(role)}; accepted are {', '.join(ROLES)}")
        if not isinstance(content, str) or (role == "assistant" and not content.strip()):
            raise UserError(f"{source}: message {number} ({role}) must have text as its content")
        json_text.check_text(content, f"{source}: message {number} ({role})")
        checked.append({"role": role, "content": content})
    if all(m["role"] != "assistant" for m in checked):
        raise UserError(f"{source}: no message has the role assistant, so there is no answer to learn")
    return tuple(checked)


def chatterbot_topics() -> dict[str, Path]:
    """{topic: file} of the English dialogues in the package chatterbot-corpus; the package itself is not imported."""
    import importlib.metadata

    need("yaml", "chatterbot_corpus")
    files = importlib.metadata.files("chatterbot-corpus") or []
    found = [f for f in files if f.parent.name == "english" and f.suffix == ".yml"]
    return {f.stem: Path(f.locate()) for f in sorted(found)}


def read_chatterbot(topic: str) -> list[Example]:
    """The distinct conversations of one topic. Statements alternate: user, assistant, user, ...

    A closing statement that nothing answers is left out, and so are repetitions (tech_support has 1050 entries, of
    which 10 differ).
    """
    topics = chatterbot_topics()
    if topic not in topics:
        raise UserError(f"--data {TOPIC_PREFIX}{topic}: no such topic; the topics are {', '.join(topics)}")
    import yaml

    with open(topics[topic], encoding="utf-8") as file:
        conversations = yaml.safe_load(file)["conversations"]
    distinct = {}
    for number, statements in enumerate(conversations, 1):
        turns = tuple(
            {"role": "assistant" if i % 2 else "user", "content": str(text).strip()}
            for i, text in enumerate(statements[: len(statements) // 2 * 2])
        )
        if turns:
            distinct.setdefault(tuple(t["content"] for t in turns), Example(turns, f"{topic}:{number}"))
    return list(distinct.values())


def split(examples: list[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(train, held out): about `fraction` of the examples held out, none of whose questions occurs in training.

    Examples that share a question stay together. Which are held out depends on the seed and on the questions only,
    not on the order of the file. fraction 0 holds out nothing.

    Raises UserError if all examples share their questions, or there is only one.
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
            "add data, or train without a held-out set: --eval-fraction 0"
        )
    train = [e for i, e in enumerate(examples) if i not in held_out]
    return train, [e for i, e in enumerate(examples) if i in held_out]


def _groups_by_question(examples: list[Example]) -> list[list[int]]:
    """Indices of the examples, those connected by a common question together (union-find)."""
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
