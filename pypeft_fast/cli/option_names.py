"""Messages of the library, which name its arguments in backticks, as messages of the command, which has options."""

import argparse
import re


def as_options(text: str, arguments: argparse.Namespace) -> str:
    """The text with each `argument_name` that is an option of this subcommand as --argument-name."""

    def option(match: re.Match) -> str:
        return f"--{match[1].replace('_', '-')}" if match[1] in arguments else match[0]

    return re.sub(r"`([a-z_]+)`", option, text)
