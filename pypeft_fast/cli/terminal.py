"""What the command prints: everything goes through `finetune.text.safe`, so that nothing steers the terminal."""

import logging
import sys
import warnings

from ..finetune.text import safe


def say(text: str = "", end: str = "\n", file=None, keep: str = "") -> None:
    """Prints a text, safe, at once: one line, unless `keep` holds a newline.

    Characters that the stream's encoding lacks are escaped as well.
    """
    stream = sys.stdout if file is None else file
    encoding = getattr(stream, "encoding", None) or "utf-8"
    written = (safe(text, keep) + end).encode(encoding, "backslashreplace").decode(encoding)
    print(written, end="", file=stream, flush=True)


def calm_libraries() -> None:
    """No progress bars of transformers while it loads, and its warnings safe: they may quote a model's files.

    Its announcements to PEFT's authors, of names of its own that PEFT calls and that will go, are left out.
    """
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|accelerate)\b")

    transformers.utils.logging.disable_progress_bar()
    for handler in logging.getLogger("transformers").handlers:
        handler.removeFilter(_make_safe)
        handler.addFilter(_make_safe)


def _make_safe(record: logging.LogRecord) -> bool:
    record.msg, record.args = safe(record.getMessage(), keep="\n\t"), ()
    return True
