"""A mutation: one line of the tree made wrong as a careless change could make it, and the tests that should see it."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutation:
    """`old`, which stands in one line of `file` and once, becomes `new`.

    tests: arguments of pytest, a string for each run, in the order to try; one of these runs must fail.
    equivalent: why no test can see it, if that is so: then every run must pass.
    needs: the instruction set without which the line does not run, "" for none.
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
        """The part of the tree that it belongs to."""
        return next(part for part in ("csrc", "kernels", "pypeft_fast") if self.file.startswith(f"{part}/"))

    def mutated(self, root=ROOT):
        """The file's text with the mutation in it; ValueError, which names the mutation, if it does not apply."""
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
        """Inside of it the file under `root`, a copy of the tree, has the mutation."""
        path, text = root / self.file, self.mutated(root)
        original = path.read_text()
        path.write_text(text)
        try:
            yield
        finally:
            path.write_text(original)
