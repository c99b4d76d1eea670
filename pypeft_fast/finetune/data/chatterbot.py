"""The dialogues by topic of PyPI's package chatterbot-corpus."""

from pathlib import Path

from ..errors import UserError, need
from .records import Example

TOPIC_PREFIX = "chatterbot:"


def chatterbot_topics() -> dict[str, Path]:
    """{topic: file} of the English dialogues in the package chatterbot-corpus. The package itself is not imported."""
    import importlib.metadata

    need("yaml", "chatterbot_corpus")
    files = importlib.metadata.files("chatterbot-corpus") or []
    found = [f for f in files if f.parent.name == "english" and f.suffix == ".yml"]
    return {f.stem: Path(f.locate()) for f in sorted(found)}


def read_chatterbot(topic: str, argument: str = "data") -> list[Example]:
    """The distinct conversations of one topic. Statements alternate: user, assistant, user, ...

    A last statement without an answer is left out. Repeated conversations are left out (tech_support has 1050 entries,
    10 of them distinct).
    """
    topics = chatterbot_topics()
    if topic not in topics:
        raise UserError(f"`{argument}` {TOPIC_PREFIX}{topic}: no such topic; the topics are {', '.join(topics)}")
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
