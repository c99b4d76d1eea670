"""The values in an adapter's config that commands read, before PEFT does: their types and ranges."""

import math
import re
from collections.abc import Callable

from ..text import quoted


def config_faults(config: dict) -> list[str]:
    """One sentence for each value of an adapter_config.json that no adapter can have."""
    rules = ANY | (LORA if config.get("peft_type") == "LORA" else {})
    wrong = {name: words for name, (fits, words) in rules.items() if name in config and not fits(config[name])}
    found = [f"{name} in the config is {quoted(config[name])}, not {words}" for name, words in wrong.items()]
    if config.get("peft_type") == "LORA" and "r" not in config:
        found.append("the config has no r")
    return found


def is_rank(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float holds
        return False


def _is_text(value) -> bool:
    return value is None or isinstance(value, str)


def _are_names(value) -> bool:
    return _is_text(value) or isinstance(value, list) and all(isinstance(item, str) for item in value)


def _patterns_of(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    """The check of a pattern: {regular expression for modules: a value that fits}, or None."""

    def are_patterns(value) -> bool:
        if value is None:
            return True
        if not isinstance(value, dict) or not all(map(fits, value.values())):
            return False
        try:
            return all(re.compile(f"({end})$") for end in value)
        except re.error:
            return False

    return are_patterns


# {field: (its check, what it must be)}
ANY = {
    "base_model_name_or_path": (_is_text, "a text"),
    "target_modules": (_are_names, "a text or a list of texts"),
}
LORA = {
    "r": (is_rank, "a whole number above 0"),
    "rank_pattern": (_patterns_of(is_rank), "ranks by expressions for modules"),
    "lora_alpha": (_is_number, "a finite number"),
    "alpha_pattern": (_patterns_of(_is_number), "finite numbers by expressions for modules"),
    "lora_dropout": (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
}
