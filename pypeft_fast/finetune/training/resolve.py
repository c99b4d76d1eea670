"""Resolves the settings of a run from the given options: defaults of the method, a schedule for the data, and checks
that the options go together."""

import re

from ..adapters.files import Adapter
from ..adapters.methods import METHODS, method_of, options_of
from ..chat_template import template_file
from ..errors import UserError, as_user_error
from ..json_text import check_text
from ..quantized import check_method
from ..text import quoted
from .schedule import schedule
from .settings import Settings

# AdamW changes each parameter by about the learning rate per step, whatever the size of the gradients. The initial
# values of an adapter are within 1, so a larger rate overwrites them in the first step.
LARGEST_RATE = 1.0
LAST_RATE = 1e-7  # of Trainer's polynomial schedule
ALL = "all-linear"  # PEFT's value of target_modules


def resolve(asked: dict, examples: int, adapter: Adapter | None) -> Settings:
    """The settings of a run on `examples` examples, which continues training `adapter` if one is given.

    asked: a value for every field of Settings, None for an option that was not given. target_modules is a text: with a
    comma, a list of names; otherwise one name, with or without dots, or a regular expression.

    The chat template that `adapter` was trained with is used unless another one is asked for.

    Raises UserError for an option that the method or the schedule does not have, for a method that cannot run over the
    quantised base model, for target_modules without a name, and for a learning rate above LARGEST_RATE.
    """
    given = dict(asked)
    if asked["target_modules"] is not None:
        given["target_modules"] = _targets(asked["target_modules"])
    options = {name for method in METHODS.values() for name in method.options}
    if adapter is None:
        given["method"] = asked["method"] or "lora"
        given |= options_of(given["method"], {name: given[name] for name in options})
    else:
        given["method"] = method_of(adapter.config, asked["adapter"])
        if asked["chat_template"] is None:
            given["chat_template"] = template_file(asked["adapter"])
        if given["method"] in ("prompt", "prefix"):
            raise UserError(
                f"`adapter` {asked['adapter']} is of `method` {given['method']}, which PEFT does not train on from "
                "files; train a new one"
            )
        for name in ("method", *sorted(options)):
            if asked[name] is not None and (name, asked[name]) != ("method", given["method"]):
                raise UserError(f"`{name}` does not go with `adapter`, which has its own; leave it out")
    check_method(given["method"], asked["quantize"])
    usual = schedule(examples) | {"learning_rate": METHODS[given["method"]].learning_rate}
    given |= {name: value for name, value in usual.items() if given[name] is None}
    if not 0 < given["learning_rate"] <= LARGEST_RATE:
        raise UserError(
            f"`learning_rate` {given['learning_rate']:g} is outside what is accepted, above 0 and at most "
            f"{LARGEST_RATE:g}; usual for {given['method']} is {usual['learning_rate']:g}"
        )
    given["warmup"] = _warmup(asked["warmup"], asked["schedule"])
    _check_decay(asked["weight_decay"], given["method"], given["learning_rate"])
    if asked["schedule"] == "polynomial" and given["learning_rate"] <= LAST_RATE:
        raise UserError(
            f"`learning_rate` {given['learning_rate']:g} does not go with `schedule` polynomial, which ends with "
            f"{LAST_RATE:g}; give a larger one, or another schedule"
        )
    if given["eval_data"] is not None:
        given["eval_fraction"] = 0
    if given["method"] == "prefix" and asked["gradient_checkpointing"]:
        raise UserError("`gradient_checkpointing` does not go with `method` prefix: it drops the cache that holds it")
    if given["method"] in ("prompt", "prefix") and asked["packing"]:
        raise UserError(
            f"`packing` does not go with `method` {given['method']}: its virtual tokens are before the first example "
            "of a row only"
        )
    return Settings(**given)


def _targets(text: str) -> str | list[str]:
    """The list of names in a text, or all-linear, or a regular expression. UserError if the text names no layer."""
    check_text(text, "`target_modules`")
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError(
            f"`target_modules` {quoted(text)} names no layer; give names separated by commas, a regular expression, or "
            f"{ALL}"
        )
    if ALL in names and len(names) > 1:
        raise UserError(
            f"`target_modules` {quoted(text)}: {ALL} means every linear layer; give it alone, or names only"
        )
    if names == [ALL]:
        return ALL
    if "," in text or re.fullmatch(r"[\w.]+", text):
        return names
    with as_user_error(f"`target_modules` {quoted(text)} is neither a name nor a regular expression", (re.error,)):
        re.compile(text)
    return text


def _warmup(asked: float | None, schedule: str) -> float:
    """The warm-up. UserError if one is asked for and the schedule has none."""
    if schedule != "constant":
        return Settings.warmup if asked is None else asked
    if asked:
        raise UserError(f"`warmup` {asked:g} does not go with `schedule` constant; take constant_with_warmup")
    return 0


def _check_decay(weight_decay: float, method: str, learning_rate: float) -> None:
    """UserError for a weight decay of values whose decay has no effect or breaks the model, or that changes signs:
    AdamW multiplies each value by 1 - learning_rate * weight_decay in each step."""
    refused = {
        "bitfit": "Trainer does not decay biases, and bitfit trains nothing else",
        "ia3": "the decay drives IA3's factors from 1 to 0, and so switches layers off",
    }
    if weight_decay and method in refused:
        raise UserError(
            f"`weight_decay` {weight_decay:g} does not go with `method` {method}: {refused[method]}; leave it out"
        )
    if weight_decay and weight_decay * learning_rate >= 1:
        raise UserError(
            f"`weight_decay` {weight_decay:g} with `learning_rate` {learning_rate:g} decays each value by all of it or "
            "more in a step; give one of which the product is below 1"
        )
