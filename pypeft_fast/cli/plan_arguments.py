"""The options of `pypeft-fast plan`."""

from .common import add_batch_size, add_dtype, add_model, add_threads
from .option_values import path, positive_int, positive_ints, size

SUMMARY = "predict what adapters cost: parameters, file, peak memory, seconds a step; and say which fit"
EXAMPLE = "pypeft-fast plan --model smollm2 --cpu 4GiB --method lora --rank 8,64 --max-length 256"
ADVICE = """\
Each candidate is a method, a group of target modules, a rank, and a format of the base model. The weights of the model
are not read: its config gives the shapes, PEFT counts the parameters, and a step on tensors without memory gives the
bytes that live at the same time. The seconds come from a few steps of one block with random weights on this machine.
Groups of target modules: q,v: PEFT's choice for LoRA in this architecture; attention and mlp: the linear layers of
these parts of a block; all-linear: PEFT's value, the default of finetune."""
METHODS, GROUPS, BASES = ("lora", "dora", "ia3"), ("q,v", "attention", "mlp", "all-linear"), ("dense", "nf4", "int8")


def add_room(parser) -> None:
    """Adds --gpu and --cpu: the memory in which a candidate must fit."""
    room = parser.add_mutually_exclusive_group()
    room.add_argument("--gpu", type=size, metavar="SIZE", help="plan for a GPU with this much memory, such as 24GiB")
    room.add_argument(
        "--cpu",
        type=size,
        nargs="?",
        const=0,
        metavar="SIZE",
        help="plan for a CPU with this much memory (default: for this machine's GPU, or for the CPU if there is none; "
        "SIZE: what is free now)",
    )


def add_arguments(parser) -> None:
    add = parser.add_argument
    add_model(parser)
    add_room(parser)
    add("--method", action="append", choices=METHODS, help="only this method; may be repeated (default: all three)")
    add("--targets", action="append", choices=GROUPS, help="only this group; may be repeated (default: all four)")
    add("--rank", type=positive_ints, metavar="N[,N...]", default=[4, 16, 64], help="the ranks (default: 4,16,64)")
    add("--base", action="append", choices=BASES, help="only this format; may be repeated (default: all three)")
    add_batch_size(parser)
    add("--max-length", type=positive_int, metavar="N", default=512, help="tokens of each (default: %(default)s)")
    add_dtype(parser)
    add_threads(parser)
    add("--no-probe", action="store_true", help="do not time a block: no seconds in the table")
    add("--json", type=path, metavar="FILE", help="write the plan as JSON too")
