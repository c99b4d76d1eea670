"""Prints the command's output. `finetune.text.safe` escapes the control characters of every printed text."""

import sys

from ..finetune.text import safe


def say(text: str = "", end: str = "\n", file=None, keep: str = "") -> None:
    """Prints a text with control characters escaped, and flushes. `keep`: control characters to print unescaped.

    Characters that the stream's encoding lacks are escaped too.
    """
    stream = sys.stdout if file is None else file
    encoding = getattr(stream, "encoding", None) or "utf-8"
    written = (safe(text, keep) + end).encode(encoding, "backslashreplace").decode(encoding)
    print(written, end="", file=stream, flush=True)
