"""What README.md of an adapter says of the quantisation of its base model, in PEFT's form."""

import os

PREFIX = "The following `bitsandbytes` quantization config was used during training:"
HEADING = "## Training procedure"


def state_quantization(card: str | os.PathLike, config) -> None:
    """Adds the base model's quantization_config to the card, if it is of bitsandbytes and the card does not say so.

    PEFT has this section, but looks for the attribute of a config where it holds a dict, so that it stays out.
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
