"""Training data as conversations, from a file, the Hugging Face Hub or the chatterbot corpus."""

from pathlib import Path

from .. import hub
from ..errors import UserError
from .chatterbot import TOPIC_PREFIX, read_chatterbot
from .files import read_file, read_hub
from .records import Example


def load_data(spec: str, argument: str = "data") -> list[Example]:
    """Reads FILE, OWNER/NAME or OWNER/NAME:FILE on the Hub, or chatterbot:TOPIC. `argument`: the option for messages.

    Raises UserError if there is no such file or topic (the message lists the topics), if a record is not valid (the
    message has file and line number), if there are no records, or if a package is missing.
    """
    if spec.startswith(TOPIC_PREFIX):
        return read_chatterbot(spec.removeprefix(TOPIC_PREFIX), argument)
    if not Path(spec).is_file() and hub.is_name(spec.partition(":")[0]):
        return read_hub(spec, argument)
    if not Path(spec).is_file():
        what = "is a folder" if Path(spec).is_dir() else "no such file"
        raise UserError(
            f"`{argument}` {spec}: {what}; give a file of .jsonl, .json, .csv or .parquet, OWNER/NAME of the Hugging "
            f"Face Hub, or {TOPIC_PREFIX}TOPIC"
        )
    return read_file(Path(spec), argument)
