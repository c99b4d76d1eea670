"""The command's arguments. Each subcommand's work is in a module of its name, imported when it is asked for."""

import argparse
import os
import sys

from .. import __version__
from .errors import UserError
from .methods import METHODS
from .option_values import count, folder, positive, positive_int, probability, seed, temperature, top_p
from .terminal import safe, say

EXAMPLES = {
    "info": "pypeft-fast info",
    "finetune": "pypeft-fast finetune --model smollm2 --data chatterbot:tech_support --output my-adapter",
    "chat": "pypeft-fast chat --model smollm2 --adapter my-adapter",
}
ADVICE = {
    "finetune": """\
--data FILE.jsonl: one JSON object a line, a conversation or a prompt with its completion:
  {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
  {"prompt": "Hi", "completion": "Hello!"}
The loss counts the assistant's tokens only. A part of the data is held out and never trained on; the loss on it
before and after tells whether training helped.

The output folder then holds the adapter (adapter_config.json, adapter_model.safetensors, in Hugging Face PEFT's
format), metrics.json, loss.png and checkpoints, from which --resume goes on.""",
    "chat": """\
In the conversation: /adapter NAME lets that adapter answer and /base the model without any, each from a new beginning;
/clear forgets what was said, /help lists the commands, /quit ends.""",
}


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line on stderr."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {safe(message)} (try {self.prog} --help)\n")


def make_parser() -> Parser:
    parser = Parser(
        prog="pypeft-fast",
        description="Parameter-efficient fine-tuning: teaches a language model by training a small adapter for it.",
        epilog="examples:\n" + "\n".join(f"  {line}" for line in EXAMPLES.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pypeft-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_info(_command(commands, "info", "what this machine and this installation can run, and why not the rest"))
    _add_finetune(_command(commands, "finetune", "train an adapter for a language model on your data"))
    _add_chat(_command(commands, "chat", "talk to a model, with adapters or without"))
    return parser


def _command(commands, name, summary):
    epilog = f"example:\n  {EXAMPLES[name]}"
    if name in ADVICE:
        epilog = f"{ADVICE[name]}\n\n{epilog}"
    return commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_info(parser):
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def _add_finetune(parser):
    add = parser.add_argument
    add("--model", required=True, metavar="PATH|smollm2", help="a model's folder, or SmolLM2-135M-Instruct from PyPI")
    add("--data", required=True, metavar="FILE.jsonl|chatterbot:TOPIC", help="what to learn, see below")
    add("--output", required=True, type=folder, metavar="DIR", help="the folder to write")
    add("--method", choices=list(METHODS), default="lora", help="the kind of adapter (default: %(default)s)")
    add("--rank", type=positive_int, metavar="N", help="lora, dora: size of the adapter (default: 16)")
    add("--alpha", type=positive, metavar="X", help="lora, dora: the update is scaled by alpha/rank (default: 32)")
    add("--dropout", type=probability, metavar="X", help="lora, dora, bottleneck: in the adapter (default: 0.05)")
    add(
        "--reduction-factor",
        type=positive,
        metavar="X",
        help="bottleneck: the model's width over the adapter's (default: 16)",
    )
    add("--virtual-tokens", type=positive_int, metavar="N", help="prompt, prefix: how many (default: 20)")
    add(
        "--target-modules",
        metavar="NAMES",
        help="lora, dora, ia3, bitfit: layers to adapt: names with commas between, one regular expression, or "
        "all-linear (default: all-linear; ia3: the usual ones for the architecture; bitfit: all that can have a bias)",
    )
    add("--epochs", type=positive, metavar="X", default=3, help="passes over the data (default: %(default)s)")
    add("--max-steps", type=positive_int, metavar="N", help="stop after so many steps, instead of --epochs")
    add(
        "--batch-size",
        type=positive_int,
        metavar="N",
        default=8,
        help="examples at a time; less takes less memory (default: 8)",
    )
    add("--gradient-accumulation", type=positive_int, default=1, metavar="N", help="batches per step (default: 1)")
    add(
        "--learning-rate",
        type=positive,
        metavar="X",
        help="the highest, decaying to 0 (default: what suits the method, for lora 2e-4)",
    )
    add(
        "--max-length",
        type=positive_int,
        metavar="N",
        default=512,
        help="tokens; what is longer is cut (default: %(default)s)",
    )
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the base model (default: %(default)s)")
    add(
        "--eval-fraction",
        type=probability,
        metavar="X",
        default=0.1,
        help="part of the data held out (default: %(default)s)",
    )
    add("--seed", type=seed, metavar="N", default=0, help="of the split, the order, the dropout (default: %(default)s)")
    add("--save-every", type=count, default=100, metavar="STEPS", help="between checkpoints; 0: none (default: 100)")
    add("--gradient-checkpointing", action="store_true", help="take less memory and more time")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --output")
    how.add_argument("--overwrite", action="store_true", help="replace what an earlier run left in --output")


def _add_chat(parser):
    add = parser.add_argument
    add("--model", required=True, metavar="PATH|smollm2", help="a model's folder, or SmolLM2-135M-Instruct from PyPI")
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="an adapter's folder; may be repeated. NAME is its folder's name if not given",
    )
    add("--prompt", metavar="TEXT", help="answer this once and end; with several adapters, each answers")
    add("--system", metavar="TEXT", help="a system message to begin with")
    add(
        "--max-new-tokens",
        type=positive_int,
        metavar="N",
        default=256,
        help="the longest answer (default: %(default)s)",
    )
    add(
        "--temperature",
        type=temperature,
        metavar="X",
        default=0,
        help="0: always the likeliest token; 1: sample (default: 0)",
    )
    add(
        "--top-p",
        type=top_p,
        metavar="X",
        default=1.0,
        help="sample from the likeliest tokens of this total (default: 1)",
    )
    add("--top-k", type=positive_int, metavar="N", help="sample from so many likeliest tokens (default: all)")
    add("--seed", type=seed, metavar="N", default=0, help="for sampling (default: %(default)s)")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the base model (default: %(default)s)")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code.

    0, 2 after a user's mistake, 130 after an interruption, 141 if what reads the output has gone.
    """
    arguments = make_parser().parse_args(argv)
    try:
        if arguments.command == "info":
            from .info import run
        elif arguments.command == "finetune":
            from .finetune import run
        else:
            from .chat import run
        run(arguments)
        sys.stdout.flush()
    except UserError as error:
        say(f"pypeft-fast {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say(f"\npypeft-fast {arguments.command}: interrupted", file=sys.stderr, keep="\n")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python's own last flush goes
        return 141
    return 0
