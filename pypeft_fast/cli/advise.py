"""`pypeft-fast advise`: which target_modules to train, from costs, gradients on the user's data, and publications."""

import argparse
import dataclasses
import sys
from pathlib import Path

from ..finetune import threads
from ..finetune.base_models import check_base
from ..finetune.calm import calm_libraries
from ..finetune.data.products import of_one
from ..finetune.errors import UserError, need
from ..finetune.quantized import check_quantize
from ..finetune.report.advice import shortened
from ..finetune.training.resolve import resolve
from ..finetune.training.settings import Settings
from ..finetune.whole_files import write_json, write_whole
from . import finetune_arguments
from .option_names import as_options
from .plan_arguments import GROUPS
from .tables import print_table
from .terminal import say

CANDIDATES = ("targets", "trained", "file", "peak", "s/step", "fits", "energy", "of parameters")
MODULES = ("module", "layers", "trained", "energy", "of parameters", "per parameter")
LOSSES = ("targets", "held-out loss", "standard error", "seconds")
SOURCES = ("source", "year", "result", "disagrees with")


def run(arguments) -> None:
    need("transformers", "accelerate", "rich", "jinja2", "matplotlib", "tqdm")
    check_base(arguments.model)
    check_quantize(arguments.quantize)
    for option, path in (("--html", arguments.html), ("--json", arguments.json)):
        _check_file(option, path)
    if arguments.html is not None and arguments.html == arguments.json:
        raise UserError(f"--html and --json are one file, {arguments.html}; name two")
    part = of_one(arguments.data, arguments.eval_data, None)
    settings = resolve(_asked(arguments), len(part.examples), None)
    threads.use(arguments.threads)
    calm_libraries()
    from ..finetune.advise.make import Wanted, make_advice
    from ..finetune.plan.room import room_of

    room, on_gpu, is_here = room_of(arguments.gpu, arguments.cpu)
    wanted = Wanted(
        settings,
        batches=arguments.batches,
        groups=tuple(name for name in GROUPS if name in (arguments.targets or GROUPS)),
        room=room,
        on_gpu=on_gpu,
        timed=is_here and not arguments.no_timing,
        steps=getattr(arguments, "try"),
    )
    advice = make_advice(wanted, part.examples, part.held_out, lambda text: say(f"{text} ...", file=sys.stderr))
    for line in shortened(advice.data, settings.max_length):
        say(as_options(line, arguments))
    _show(advice, arguments)
    _write(advice, arguments)


def _check_file(option: str, path: Path | None) -> None:
    """UserError if a file cannot be written there; found before the work, not after."""
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"{option} {path} cannot be written: it is a folder; give the name of a file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{option} {path} cannot be written: there is no such folder")


def _asked(arguments) -> dict:
    """{field of Settings: the value that was given, the default of `pypeft-fast finetune` for the others}."""
    finetune = argparse.ArgumentParser()
    finetune_arguments.add_arguments(finetune)
    names = [field.name for field in dataclasses.fields(Settings)]
    given = {name: getattr(arguments, name, finetune.get_default(name)) for name in names}
    return given | {"alpha": 2 * arguments.rank}


def _write(advice, arguments) -> None:
    from ..finetune.advise.page import page
    from ..finetune.advise.record import record

    if arguments.html is not None:
        write_whole(arguments.html, page(advice).encode("utf-8", "backslashreplace"))
        say(f"the report is in {arguments.html}")
    if arguments.json is not None:
        write_json(arguments.json, record(advice))
        say(f"all numbers are in {arguments.json}")


def _show(advice, arguments) -> None:
    import torch

    from ..finetune.advise.evidence import FINDINGS, against
    from ..finetune.advise.lines import peft_config, train_command
    from ..finetune.advise.make import plan_rows
    from ..finetune.advise.shares import by_module
    from ..finetune.sizes import written

    its = advice.plan.wanted
    say(
        f"{len(advice.data.train)} examples to train on, {len(advice.data.held_out)} held out; batches of "
        f"{its.batch_size} x {its.max_length} tokens; memory of {'the GPU' if its.on_gpu else 'the CPU'}: "
        f"{written(its.room)}"
    )
    for line in advice.plan.remarks:
        say(f"note: {line}")
    rows = []
    for name, row in plan_rows(advice.plan).items():
        seconds = f"{row.seconds[0]:.2f}" if row.seconds else "-"
        share = advice.shares[name]
        sizes = (written(row.file_bytes), written(row.memory[0].peak))
        rows.append((name, f"{row.parameters:,}", *sizes, seconds, row.fits, *_shares(share)))
    if advice.plan.wanted.timed and (oversubscribed := threads.why_oversubscribed(torch.get_num_threads())):
        say(as_options(oversubscribed, arguments))
    print_table(CANDIDATES, rows, CANDIDATES[1:5] + CANDIDATES[6:], f"candidates, LoRA of rank {its.ranks[0]}")
    rows = [
        (name, str(share.layers), f"{share.parameters:,}", *_shares(share), f"{share.density:.2f}")
        for name, share in by_module(advice.layers).items()
    ]
    print_table(MODULES, rows, MODULES[1:], f"gradient energy before training, {advice.read} examples")
    if advice.trial is not None:
        _show_trial(advice.trial)
    authors = {finding.key: finding.authors for finding in FINDINGS}
    rows = [(f.authors, str(f.year), f.brief, "; ".join(authors[key] for key in against(f.key))) for f in FINDINGS]
    print_table(SOURCES, rows, title="publications; --html has the numbers, the models and the links")
    say(f"train: {advice.choice.targets}")
    for line in advice.choice.why:
        say(f"  because: {line}")
    for line in advice.choice.doubts:
        say(f"  but: {line}")
    say(train_command(advice))
    say(peft_config(advice))


def _shares(share) -> tuple[str, str]:
    """The share of the gradient energy with its standard error, and the share of the parameters."""
    error = "" if not share.error else f" ± {100 * share.error:.1f}"
    return f"{100 * share.energy:.1f}{error} %", f"{100 * share.cost:.1f} %"


def _show_trial(trial) -> None:
    rows = []
    for its in (trial.base, *trial.tried):
        loss, error = its.loss
        spread = "-" if error is None else f"{error:.3f}"
        rows.append((its.targets, f"{loss:.3f}", spread, f"{its.seconds:.1f}" if its.training else "-"))
    title = f"after {trial.steps} steps; {trial.examples} held-out examples, {trial.tokens:,} tokens"
    print_table(LOSSES, rows, LOSSES[1:], title)
    lead, error = trial.lead()
    spread = "" if error is None else f", standard error of this difference {error:.3f}"
    say(f"{trial.ranked()[0].targets} leads by {lead:.3f}{spread}")
