"""What the command prints: everything goes through `finetune.text.safe`, so that nothing steers the terminal."""

import sys

from ..finetune.text import safe


def say(text: str = "", end: str = "\n", file=None, keep: str = "") -> None:
    """Prints a text, safe, at once: one line, unless `keep` holds a newline.

    Characters that the stream's encoding lacks are escaped as well.
    """
    stream = sys.stdout if file is None else file
    encoding = getattr(stream, "encoding", None) or "utf-8"
    written = (safe(text, keep) + end).encode(encoding, "backslashreplace").decode(encoding)
    print(written, end="", file=stream, flush=True)
