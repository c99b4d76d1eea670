"""The command `pypeft-fast`. Each subcommand has a module for its options and a module that runs it.

These modules import no PyTorch before the arguments and paths are checked.
"""

import argparse
import importlib
import os
import signal
import sys
from typing import NoReturn

from ..finetune.errors import UserError, as_user_error
from ..finetune.text import cut
from .option_names import as_options
from .parser import Parser
from .terminal import say

# {subcommand: (the module of its options, the module that runs it)}; the second is imported only to run it
COMMANDS = {
    "info": ("info_arguments", "info"),
    "finetune": ("finetune_arguments", "finetune"),
    "evaluate": ("evaluate", "evaluate"),
    "chat": ("chat", "chat"),
    "serve": ("serve", "serve"),
    "inspect": ("inspect_adapter", "inspect_adapter"),
    "merge": ("merge", "merge"),
    "plan": ("plan_arguments", "plan"),
    "advise": ("advise_arguments", "advise"),
    "adapters": ("adapters_arguments", "adapters"),
}

INTERRUPTED = 130  # the exit code of an interrupted process in shells


def make_parser() -> Parser:
    modules = {name: importlib.import_module(f".{its[0]}", __package__) for name, its in COMMANDS.items()}
    parser = Parser(
        prog="pypeft-fast",
        description="Parameter-efficient fine-tuning: teaches a language model by training a small adapter for it.",
        epilog="examples:\n" + "\n".join(f"  {its.EXAMPLE}" for its in modules.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, its in modules.items():
        command = commands.add_parser(
            name,
            help=its.SUMMARY,
            description=its.SUMMARY[0].upper() + its.SUMMARY[1:] + ".",
            epilog=f"{its.ADVICE}\n\nexample:\n  {its.EXAMPLE}" if its.ADVICE else f"example:\n  {its.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        its.add_arguments(command)
    return parser


def _check_kernel() -> None:
    """UserError if PYPEFT_FAST_KERNEL names no kernel; importing _op raises the error."""
    kernel = os.environ.get("PYPEFT_FAST_KERNEL")
    if kernel is not None:
        with as_user_error(f"PYPEFT_FAST_KERNEL={kernel}", (ValueError,)):
            importlib.import_module(".._op", __package__)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns the exit code.

    0; 2 after a user's mistake, 130 after an interruption, 141 if the reader of the output has closed the pipe.
    """
    name, arguments = "pypeft-fast", argparse.Namespace()
    try:
        parser = make_parser()
        arguments = parser.parse_args(argv)
        if arguments.version:
            from importlib.metadata import version

            say(f"pypeft-fast {version('pypeft-fast')}")
            return 0
        if arguments.command is None:
            parser.error("the following arguments are required: COMMAND")
        name = f"pypeft-fast {arguments.command}"
        _check_kernel()
        importlib.import_module(f".{COMMANDS[arguments.command][1]}", __package__).run(arguments)
        sys.stdout.flush()
    except UserError as error:
        say(f"{name}: {as_options(str(error), arguments)}", file=sys.stderr)
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at exit
            return 141
        if error.filename is None:
            raise
        say(f"{name}: {cut(str(error.filename))}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say(f"\n{name}: interrupted", file=sys.stderr, keep="\n")
        return INTERRUPTED
    return 0


def _end_at_once() -> NoReturn:
    """Ends the process with exit code 130, without the interpreter's shutdown, which takes a second with PyTorch."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)


def _interrupt(_signal, frame) -> None:
    """Handles Ctrl-C: raises KeyboardInterrupt, or ends the process during an import, since PyTorch's imports catch
    exceptions or abort."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            say("\npypeft-fast: interrupted", file=sys.stderr, keep="\n")
            _end_at_once()
        frame = frame.f_back
    raise KeyboardInterrupt


def main_and_exit() -> NoReturn:
    """The entry point of the process."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in a background job it is SIG_IGN
        signal.signal(signal.SIGINT, _interrupt)
    code = main()
    if code == INTERRUPTED:
        _end_at_once()
    sys.exit(code)
