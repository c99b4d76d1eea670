"""What is said of an interrupted training."""

import pytest
import torch

from pypeft_fast.cli.interrupted import saying_how_to_resume
from pypeft_fast.finetune.errors import UserError


def said_of(error, capsys, can_be_resumed=True, overwrite=False):
    """The line after the block has raised the error."""
    with pytest.raises(BaseException) as raised, saying_how_to_resume(lambda: can_be_resumed, overwrite):
        raise error
    return raised.value, capsys.readouterr().err.strip()


def test_the_command_to_go_on_with(capsys):
    for error in (KeyboardInterrupt(), UserError("full")):
        assert said_of(error, capsys) == (error, "to go on later, give the same command with --resume")
        said = said_of(error, capsys, overwrite=True)[1]  # the command takes one of the two
        assert said == "to go on later, give the same command with --resume in place of --overwrite"
        assert said_of(error, capsys, can_be_resumed=False)[1] == ""
    assert said_of(ValueError(), capsys)[1] == ""


def test_no_memory(capsys):
    for error in (MemoryError(), torch.OutOfMemoryError()):
        raised, said = said_of(error, capsys)
        assert isinstance(raised, UserError) and "take a smaller --batch-size" in str(raised) and "--resume" in said
