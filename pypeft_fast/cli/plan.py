"""`pypeft-fast plan`: a table of what adapters cost, before anything is trained."""

import json
import sys

from ..finetune import threads
from ..finetune.base_models import check_base
from ..finetune.calm import calm_libraries
from ..finetune.errors import UserError, as_user_error, need
from ..finetune.quantized import check_quantize
from .plan_arguments import BASES, GROUPS, METHODS
from .tables import print_table
from .terminal import say

COLUMNS = ("method", "targets", "r", "trained", "file", "peak", "s/step", "checkpointed", "s/step", "fits")


def run(arguments) -> None:
    need("transformers", "rich")
    check_base(arguments.model)
    bases = _bases(arguments.base)
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        raise UserError(f"--json {arguments.json} cannot be written: there is no such folder")
    threads.use(arguments.threads)
    calm_libraries()
    from ..finetune.plan.make import Wanted, make_plan
    from ..finetune.plan.room import room_of

    room, on_gpu, is_here = room_of(arguments.gpu, arguments.cpu)
    wanted = Wanted(
        methods=tuple(arguments.method or METHODS),
        groups=tuple(arguments.targets or GROUPS),
        ranks=tuple(sorted(set(arguments.rank))),
        bases=bases,
        batch_size=arguments.batch_size,
        max_length=arguments.max_length,
        dtype=arguments.dtype,
        room=room,
        on_gpu=on_gpu,
        timed=is_here and not arguments.no_probe,
    )
    plan = make_plan(arguments.model, wanted, lambda text: say(f"{text} ...", file=sys.stderr))
    _show(plan)
    if not is_here:
        say("no seconds: a block can be timed only on the machine that trains; run the command there")
    if arguments.json is not None:
        from ..finetune.plan.record import record

        with as_user_error(f"--json {arguments.json} cannot be written", (OSError,)):
            arguments.json.write_text(json.dumps(record(plan), indent=2) + "\n")
        say(f"the plan is in {arguments.json}")


def _bases(given: list[str] | None) -> tuple[str | None, ...]:
    """The formats; without the option those that this installation has. UserError if one that is given is missing."""
    found: list[str | None] = []
    for name in given or BASES:
        base = None if name == "dense" else name
        try:
            check_quantize(base)
        except UserError:
            if given:
                raise
            say(f"no {name}: bitsandbytes is not installed here; run: pip install bitsandbytes", file=sys.stderr)
            continue
        found.append(base)
    return tuple(dict.fromkeys(found))


def _show(plan) -> None:
    from ..finetune.sizes import written

    wanted = plan.wanted
    device = "the GPU" if wanted.on_gpu else "the CPU"
    say(
        f"{plan.skeleton.name}: {plan.weights:,} parameters in {plan.skeleton.depth} blocks; batches of "
        f"{wanted.batch_size} x {wanted.max_length} tokens, {wanted.dtype}; {device} has {written(wanted.room)}"
    )
    for line in plan.remarks:
        say(f"note: {line}")
    for base in wanted.bases:
        rows = [_cells(row, written) for row in plan.rows if row.base == base]
        print_table(COLUMNS, rows, COLUMNS[2:-1], title=f"base model: {base or 'dense'}")
    peaks = [memory for row in plan.rows for memory in row.memory]
    if of_loading := sum(memory.loading > 0 for memory in peaks):
        say(
            f"loading decides {of_loading} of {len(peaks)} peaks: the model's file is in memory while its weights are "
            "converted or quantised, so other targets, ranks and formats hardly change these peaks"
        )
    say("checkpointed: with --gradient-checkpointing. peak: of the process on a CPU, of the device's memory on a GPU")


def _cells(row, written) -> list[str]:
    its = row.candidate
    seconds = [f"{s:.2f}" for s in row.seconds] if row.seconds else ["-", "-"]
    peaks = [written(memory.peak) for memory in row.memory]
    rank = "-" if its.rank is None else str(its.rank)
    size = [f"{row.parameters:,}", written(row.file_bytes)]
    return [its.method, its.targets, rank, *size, peaks[0], seconds[0], peaks[1], seconds[1], row.fits]
