"""What is said of a training that an interruption or an error has ended."""

import contextlib
import sys

from ..finetune.errors import UserError, as_user_error
from .terminal import say


@contextlib.contextmanager
def saying_how_to_resume(can_be_resumed, overwrite: bool):
    """Prints how to continue if the block is interrupted, or raises UserError, and can_be_resumed() is true.

    overwrite: whether the command has --overwrite. Memory that has run out becomes a UserError.
    """
    import torch

    try:
        with as_user_error("no memory is left; take a smaller --batch-size", (torch.OutOfMemoryError, MemoryError)):
            yield
    except (KeyboardInterrupt, UserError):
        if can_be_resumed():
            how = "--resume in place of --overwrite" if overwrite else "--resume"
            say(f"\nto go on later, give the same command with {how}", file=sys.stderr, keep="\n")
        raise
