"""TunerConfig: what the configs of our methods share, saving."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from peft import PeftConfig
from peft.utils import CONFIG_NAME


@dataclass
class TunerConfig(PeftConfig):
    """peft.PeftConfig, saved so that the file is whole at every moment and nothing outside the folder is written."""

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """Writes adapter_config.json as PEFT does, into a folder beside it, and gives it its name when it is whole.

        A link that lies under that name is replaced, not followed. Raises AssertionError, as PEFT does, if
        save_directory is a file.
        """
        if os.path.isfile(save_directory):
            raise AssertionError(f"save_directory={str(save_directory)!r} is a file; give a folder")
        os.makedirs(save_directory, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{CONFIG_NAME}.", dir=save_directory) as draft:
            super().save_pretrained(draft, **kwargs)
            path = Path(draft, CONFIG_NAME)
            with path.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(path, Path(save_directory, CONFIG_NAME))
