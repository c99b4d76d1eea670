"""The section of an adapter's README.md on the quantisation of the base model, in PEFT's format."""

import os

PREFIX = "The following `bitsandbytes` quantization config was used during training:"
HEADING = "## Training procedure"


def state_quantization(card: str | os.PathLike, config) -> None:
    """Adds the base model's quantization_config to the card, if the method is bitsandbytes and the card lacks it.

    PEFT has code for this section, but that code reads an attribute of a dict and so never writes the section.
    """
    method = getattr(getattr(config, "quantization_config", None), "quant_method", None)
    if getattr(method, "value", method) != "bitsandbytes":
        return
    with open(card, encoding="utf-8") as file:
        text = file.read()
    if PREFIX in text:
        return
    lines = "\n".join(f"- {name}: {value}" for name, value in config.quantization_config.to_dict().items())
    with open(card, "w", encoding="utf-8") as file:
        file.write(f"{text}\n\n{HEADING}\n\n{PREFIX}\n\n{lines}\n")
