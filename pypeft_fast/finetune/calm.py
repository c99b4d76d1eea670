"""What libraries print of themselves, kept from whoever runs a command or an example."""

import logging
import warnings

from .text import safe


def calm_libraries() -> None:
    """No progress bars of transformers while it loads, and its warnings safe: they may quote a model's files.

    Its announcements to PEFT's authors, of names of its own that PEFT calls and that will go, are left out. So is what
    bitsandbytes says when it is imported and finds no kernel on the Hub: for layers that nothing here evaluates by it.
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
