"""Hides progress bars and notices of libraries in the command and the examples."""

import logging
import warnings

from .text import safe


def calm_libraries() -> None:
    """Hides transformers' progress bars, and escapes control characters in its warnings, which may quote model files.

    Also hidden are deprecation warnings about calls that PEFT makes, and the message that bitsandbytes found no kernel
    on the Hub, since this package does not run the layers of bitsandbytes.
    """
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|accelerate)\b")

    for library in ("bitsandbytes", "kernels"):
        logging.getLogger(library).setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    for handler in logging.getLogger("transformers").handlers:
        handler.removeFilter(_make_safe)
        handler.addFilter(_make_safe)


def _make_safe(record: logging.LogRecord) -> bool:
    record.msg, record.args = safe(record.getMessage(), keep="\n\t"), ()
    return True
