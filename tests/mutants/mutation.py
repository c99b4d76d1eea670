"""A mutation: a typical mistake in one line of the tree, and the tests that should fail because of it."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutation:
    """Replaces `old`, which occurs once in `file` and within one line, by `new`.

    tests: arguments of pytest, one string for each run, in the order of the runs. One run must fail.
    equivalent: the reason if the mutation changes no result; every run must then pass. Otherwise "".
    needs: the instruction set that the line needs, or "".
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    equivalent: str = ""
    needs: str = ""

    @property
    def folder(self):
        """The top folder of the file."""
        return next(part for part in ("csrc", "kernels", "pypeft_fast") if self.file.startswith(f"{part}/"))

    def mutated(self, root=ROOT):
        """The text of the file with the mutation; ValueError if `old` does not occur exactly once."""
        text = (root / self.file).read_text()
        count = text.count(self.old)
        if count != 1 or self.old == self.new:
            raise ValueError(
                f"{self.name}: {self.old!r} is {count} times in {self.file}, expected once; give the mutation in "
                f"tests/mutants the line's new text"
            )
        return text.replace(self.old, self.new)

    @contextlib.contextmanager
    def applied(self, root):
        """Applies the mutation to the file under `root`, a copy of the tree, for the length of a block."""
        path, text = root / self.file, self.mutated(root)
        original = path.read_text()
        path.write_text(text)
        try:
            yield
        finally:
            path.write_text(original)
