"""Converts argument names in backticks, in messages of the library, to the options of the command."""

import argparse
import re


def as_options(text: str, arguments: argparse.Namespace) -> str:
    """The text with each `argument_name` replaced by --argument-name, if the subcommand has this option."""

    def option(match: re.Match) -> str:
        return f"--{match[1].replace('_', '-')}" if match[1] in arguments else match[0]

    return re.sub(r"`([a-z_]+)`", option, text)
