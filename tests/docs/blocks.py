"""The code blocks of the documents: README.md, CONTRIBUTING.md and docs/*.md, and the commands in them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
SHELL = ("", "bash", "sh")


@dataclass(frozen=True)
class Block:
    """page: its path from the root. number: among the page's blocks of this language. text: without the indentation."""

    page: str
    number: int
    language: str
    text: str


def blocks_of(page: str) -> list[Block]:
    found, counts = [], {}
    fences = re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    for indent, language, text in (match.groups() for match in fences):
        counts[language] = counts.get(language, 0) + 1
        lines = (line.removeprefix(indent) for line in text.splitlines())
        found.append(Block(page, counts[language], language, "\n".join(lines)))
    return found


def commands_in(text: str) -> list[str]:
    """The commands of a shell block, each on one line, without comments; several spaces count as one."""
    whole = re.sub(r"\\\n\s*", " ", text)
    lines = (re.sub(r"(^|\s+)# .*$", "", line).strip() for line in whole.splitlines())
    return [re.sub(r"\s{2,}", " ", line) for line in lines if line]


def shell_commands(page: str) -> list[str]:
    return [line for block in blocks_of(page) if block.language in SHELL for line in commands_in(block.text)]


def inline_code(page: str) -> list[str]:
    """The code in backticks in a page's text, outside its blocks."""
    text = re.sub(r"^( *)```.*?^\1```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]
