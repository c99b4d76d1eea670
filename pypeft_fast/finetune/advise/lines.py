"""The lines to paste: the command that trains the candidate, and PEFT's config."""

import shlex

from ..report.card import command
from .make import Advice

OUTPUT = "my-adapter"
# {field of Settings: finetune's default}: these options are left out of the command if they have the default.
DEFAULTS = {"quantize": None, "dtype": "float32", "batch_size": 4, "max_length": 512, "eval_data": None, "seed": 0}
DEFAULTS |= {"eval_fraction": 0.1, "learning_rate": 5e-4}


def train_command(advice: Advice) -> str:
    """The command for a shell that trains the recommended candidate."""
    settings = advice.wanted.settings
    own = advice.chosen.settings(settings.model)
    given = {"model": settings.model, "data": settings.data, "target_modules": own.target_modules}
    given |= {"rank": own.rank, "alpha": own.alpha}
    given |= {name: getattr(settings, name) for name, usual in DEFAULTS.items() if getattr(settings, name) != usual}
    given["gradient_checkpointing"] = advice.choice.checkpointing
    if settings.eval_data is not None:
        given.pop("eval_fraction", None)
    return command(given, OUTPUT)


def in_lines(line: str) -> str:
    """The same command for a shell, with a line for each option."""
    text = ""
    for word in shlex.split(line):
        text += (" \\\n    " if word.startswith("--") else " ") + shlex.quote(word)
    return text.strip()


def peft_config(advice: Advice) -> str:
    """PEFT's config of the recommended candidate, as Python."""
    its = advice.chosen.settings(advice.wanted.settings.model)
    return (
        f"LoraConfig(r={its.rank}, lora_alpha={its.alpha}, lora_dropout={its.dropout}, "
        f'target_modules={its.target_modules!r}, task_type="CAUSAL_LM")'
    )
