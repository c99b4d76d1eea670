"""Resolves the settings of a run from the given options: defaults of the method, a schedule for the data, and checks
that the options go together."""

import re

from ..adapters.files import Adapter
from ..adapters.methods import METHODS, method_of, options_of
from ..errors import UserError
from ..json_text import check_text
from ..quantized import check_method
from .schedule import schedule
from .settings import Settings

# AdamW changes each parameter by about the learning rate per step, whatever the size of the gradients. The initial
# values of an adapter are within 1, so a larger rate overwrites them in the first step.
LARGEST_RATE = 1.0


def resolve(asked: dict, examples: int, adapter: Adapter | None) -> Settings:
    """The settings of a run on `examples` examples, which continues training `adapter` if one is given.

    asked: a value for every field of Settings, None for an option that was not given. target_modules is a text: with a
    comma, a list of names; otherwise one name, with or without dots, or a regular expression.

    Raises UserError for an option that the method does not have, for a method that cannot run over the quantised base
    model, and for a learning rate above LARGEST_RATE.
    """
    given = asked | {"max_steps": asked["max_steps"] or -1}
    names = asked["target_modules"]
    if names not in (None, "all-linear") and ("," in names or re.fullmatch(r"[\w.]+", names)):
        given["target_modules"] = [name.strip() for name in names.split(",") if name.strip()]
    if names is not None:
        check_text(names, "`target_modules`")
    options = {name for method in METHODS.values() for name in method.options}
    if adapter is None:
        given["method"] = asked["method"] or "lora"
        given |= options_of(given["method"], {name: given[name] for name in options})
    else:
        given["method"] = method_of(adapter.config, asked["adapter"])
        if given["method"] in ("prompt", "prefix"):
            raise UserError(
                f"`adapter` {asked['adapter']} is of `method` {given['method']}, which PEFT does not train on from "
                "files; train a new one"
            )
        for name in ("method", *sorted(options)):
            if asked[name] is not None:
                raise UserError(f"`{name}` does not go with `adapter`, which has its own; leave it out")
    check_method(given["method"], asked["quantize"])
    usual = schedule(examples) | {"learning_rate": METHODS[given["method"]].learning_rate}
    given |= {name: value for name, value in usual.items() if given[name] is None}
    if not 0 < given["learning_rate"] <= LARGEST_RATE:
        raise UserError(
            f"`learning_rate` {given['learning_rate']:g} is outside what is accepted, above 0 and at most "
            f"{LARGEST_RATE:g}; usual for {given['method']} is {usual['learning_rate']:g}"
        )
    if given["eval_data"] is not None:
        given["eval_fraction"] = 0
    if given["method"] == "prefix" and asked["gradient_checkpointing"]:
        raise UserError("`gradient_checkpointing` does not go with `method` prefix: it drops the cache that holds it")
    return Settings(**given)
