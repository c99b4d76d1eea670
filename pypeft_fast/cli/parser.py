"""The argparse parser of the command and of each subcommand."""

import argparse
import difflib
import re

from ..finetune.text import safe
from .config_file import ConfigError, config_in, exclude_others, options_from
from .config_overrides import outdated, values_in

# {option of other programs: this command's option}, if the two names have no word in common
OTHERS = {"--r": "--rank", "--lora-r": "--rank", "--lr": "--learning-rate", "--lora-target": "--target-modules"}


class Once(argparse._StoreAction):
    """Stores the value of an option; an error if the option is given again with another value."""

    def __call__(self, parser, namespace, values, option_string=None):
        if option_string is not None and parser.given.setdefault(self.dest, values) != values:
            raise argparse.ArgumentError(
                self, f"given twice, as {_shown(parser.given[self.dest])} and as {_shown(values)}; give it once"
            )
        super().__call__(parser, namespace, values, option_string)


def _shown(value) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


class Parser(argparse.ArgumentParser):
    """An argparse parser that prints one line on stderr for a mistake, with a suggestion.

    If it has the option --config, the options in that file are the defaults of those that are not given.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for action in (None, "store"):  # None: the action of an option for which none is named
            self.register("action", action, Once)

    def error(self, message):
        self.exit(2, f"{self.prog}: {safe(message)}{self._guess(message)} (try {self.prog} --help)\n")

    def parse_args(self, args=None, namespace=None):
        """argparse's parse_args; an unknown option is an error of the subcommand, whose options are suggested."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            commands = next(a for a in self._actions if isinstance(a, argparse._SubParsersAction)).choices
            commands.get(getattr(found, "command", None), self).error(f"unrecognized arguments: {' '.join(unknown)}")
        return found

    def parse_known_args(self, args=None, namespace=None):
        path = config_in(args) if args and "--config" in self._option_string_actions else None
        if path is not None:
            self._take_defaults(path, args)
        self.given = {}  # {dest: value} of the options in args, for Once
        return super().parse_known_args(args, namespace)

    def _take_defaults(self, path: str, args: list[str]) -> None:
        """Makes the values in the file the defaults of the options that are not among these arguments."""
        options = self._option_string_actions
        names = [name for name in (arg.partition("=")[0] for arg in args) if name in options]
        given = values_in(args, options)
        chosen = {options[name].dest for name in names if not name.startswith("--no-")}
        groups = [[action.dest for action in its._group_actions] for its in self._mutually_exclusive_groups]
        try:
            found = exclude_others(options_from(path, self._actions, self.closest), set(given), chosen, groups)
        except ConfigError as error:
            self.error(f"--config {path}: {error}")
        gone = outdated(found, given)
        for action in self._actions:
            if action.dest in found and action.dest not in gone:
                action.default, action.required = found[action.dest], False

    def closest(self, option: str) -> str | None:
        """The option of this parser that somebody may mean who writes this one."""
        if OTHERS.get(option) in self._option_string_actions:
            return OTHERS[option]
        close = difflib.get_close_matches(option, self._option_string_actions, n=1)
        parts = set(re.split("[-_]+", option.strip("-")))
        close = close or [own for own in self._option_string_actions if parts & set(own.strip("-").split("-"))]
        return close[0] if close else None

    def _guess(self, message: str) -> str:
        wrong = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        close = self.closest(wrong[1]) if wrong else None
        return f"; did you mean {close}?" if close else ""
