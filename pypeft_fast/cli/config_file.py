"""Reads the options of a subcommand from a file of YAML, TOML or JSON.

A key is the long name of an option, with - or _. The value is converted by the function that converts the text of the
option on the command line, so the same values are accepted and the messages are the same.
"""

import argparse
import difflib
import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path

from ..finetune import json_text
from ..finetune.errors import UserError, as_user_error, need
from ..finetune.text import cut, quoted
from .option_values import text

NOT_IN_FILES = ("help", "config", "print_config")
# Keys of a finetune.json that are no options: the settings of several adapters, checkpoints of earlier runs, and hashes
# of what the run has read.
RECORDS = ("adapters", "earlier_checkpoints", "sha256")
COMMAS = ("target_modules",)  # a list becomes one text, separated by commas


class ConfigError(Exception):
    """What is wrong with a config file; the message names the key, the value and the remedy, not the file."""


def config_in(args: list[str]) -> str | None:
    """The file that --config names last in these arguments; None without the option."""
    found = [args[i + 1] for i, arg in enumerate(args[:-1]) if arg == "--config"]
    found += [arg.partition("=")[2] for arg in args if arg.startswith("--config=")]
    return found[-1] if found else None


def options_from(path: str, actions: Iterable[argparse.Action], closest: Callable[[str], str | None]) -> dict:
    """{dest: value} of the options in a file. null means that the option is not given.

    closest(option): an option with a similar name. Raises ConfigError: see `read`; a key is no option or occurs under
    two names; a value has the wrong type or is not accepted.
    """
    known = {_key(option): action for action in actions for option in action.option_strings if _counts(action, option)}
    found, names = {}, {}
    for key, value in read(Path(path)).items():
        name = str(key).replace("-", "_")
        if name in RECORDS and path.endswith(".json") and isinstance(value, dict):
            continue
        if name not in known:
            raise ConfigError(f"{cut(str(key))}: no such option{_meant(name, known, closest)}")
        action = known[name]
        if action.dest in names:
            raise ConfigError(f"{key}: {names[action.dest]} in it is the same option; leave one out")
        names[action.dest] = key
        if value is not None:
            try:
                found[action.dest] = _converted(action, value)
            except (argparse.ArgumentTypeError, ValueError, UserError) as error:
                raise ConfigError(f"{key}: {error}") from error
    return found


def exclude_others(found: dict, given: set[str], chosen: set[str], groups: Iterable[list[str]]) -> dict:
    """The options of a file without those that are given, or that exclude one that is chosen.

    chosen: the given options but those that are turned off. groups: the names of options that exclude each other.
    ConfigError if the file itself has two of a group.
    """
    found = {name: value for name, value in found.items() if name not in given}
    for group in groups:
        both = [name for name in group if found.get(name)]
        if any(name in chosen for name in group):
            found = {name: value for name, value in found.items() if name not in group}
        elif len(both) > 1:
            raise ConfigError(f"{both[0]} and {both[1]} exclude each other; leave one out")
    return found


def read(path: Path) -> dict:
    """The mapping in a file, whose suffix is .yaml, .yml, .toml or .json.

    Raises ConfigError: another suffix, a file that cannot be read or is not of its format, a value that is no mapping,
    or a missing package.
    """
    readers = {".yaml": _yaml, ".yml": _yaml, ".toml": _toml, ".json": json_text.parse}
    if path.suffix.lower() not in readers:
        raise ConfigError(f"the name must end in one of {', '.join(readers)}, which gives the format")
    try:
        text = path.read_text(encoding="utf-8")
        value = readers[path.suffix.lower()](text, "this file")
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 text: {error}") from error
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror or error}") from error
    except UserError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(value, dict):
        raise ConfigError(f"a mapping from options to values is expected, such as rank: 8, not {_kind(value)}")
    return value


def _yaml(text: str, source: str):
    need("yaml")
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key in keys:
                if keys.count(key) > 1:
                    raise ConfigError(f"{cut(key)} occurs twice; leave one out")
            return super().construct_mapping(node, deep)

    with as_user_error(f"{source} is not YAML", (yaml.YAMLError, ValueError, RecursionError)):
        return yaml.load(text, Loader)


def _toml(text: str, source: str):
    module = next((name for name in ("tomllib", "tomli") if importlib.util.find_spec(name)), None)
    if module is None:
        raise UserError("TOML needs Python 3.11 or the package tomli; run pip install tomli, or write the file in YAML")
    with as_user_error(f"{source} is not TOML", (ValueError, RecursionError)):
        return importlib.import_module(module).loads(text)


def _counts(action: argparse.Action, option: str) -> bool:
    """Whether a file may have this option, under this name."""
    is_negation = isinstance(action, argparse.BooleanOptionalAction) and option.startswith("--no-")
    return option.startswith("--") and not is_negation and action.dest not in NOT_IN_FILES


def _key(option: str) -> str:
    return option.strip("-").replace("-", "_")


def _meant(name: str, known: dict, closest: Callable[[str], str | None]) -> str:
    option = closest(f"--{name.replace('_', '-')}")
    return f"; did you mean {_key(option)}?" if option and _key(option) in known else ""


def _converted(action: argparse.Action, value):
    """The value of one option. Raises ArgumentTypeError, ValueError or UserError if it is not accepted."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"{quoted(value)} is not true or false")
        return value
    if value in ([], {}):
        raise ValueError("is empty; give a value, or leave the key out")
    if action.dest in COMMAS and isinstance(value, list):
        value = ",".join(_name(item) for item in value) + "," * (len(value) == 1)
    if action.nargs == "+" or isinstance(action, argparse._AppendAction):
        if isinstance(value, dict) and "NAME=" in (action.metavar or ""):
            value = [f"{_text(name)}={_text(its)}" for name, its in value.items()]
        return [_one(action, item) for item in (value if isinstance(value, list) else [value])]
    return _one(action, value)


def _one(action: argparse.Action, value):
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"{quoted(value)} is {_kind(value)}, and one value is expected")
    if action.type in (None, text):
        value = _text(value)
    found = action.type(str(value)) if action.type else value
    if action.choices is not None and found not in action.choices:
        close = difflib.get_close_matches(str(found), action.choices, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"{quoted(found)} is none of {', '.join(action.choices)}{hint}")
    return found


def _name(item) -> str:
    """An item of a list that becomes a text separated by commas. ValueError if the item is no single name."""
    if "," in _text(item):
        raise ValueError(f"the item {quoted(item)} holds a comma; give each name as an item of its own")
    if not item.strip():
        raise ValueError(f"the item {quoted(item)} is empty; leave it out")
    return item


def _text(value) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{quoted(value)} is {_kind(value)}, and a text is expected; put it in quotes")
    json_text.check_text(value, "the text")
    if "\0" in value:
        raise ValueError(f"{quoted(value)} holds a NUL character; remove it")
    return value


def _kind(value) -> str:
    kinds = {
        bool: "true or false",
        str: "a text",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "a mapping",
    }
    return "empty" if value is None else kinds.get(type(value), type(value).__name__)
