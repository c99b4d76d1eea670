"""`pypeft-fast finetune` with several --data NAME=FILE or --by-product: several adapters over one base model."""

import functools
import shlex

from ..finetune import threads
from ..finetune.adapters.methods import check_by_rows
from ..finetune.calm import calm_libraries
from ..finetune.data.products import Part
from ..finetune.data.split import leaked, split
from ..finetune.errors import about
from ..finetune.memory import resident_bytes
from ..finetune.report.advice import after_training, before_training, shortened
from ..finetune.training.checkpoints import remove as remove_checkpoints
from ..finetune.training.hashes import hashes_of
from ..finetune.training.many_folder import alone_in_many, begin_many, can_be_resumed_many, open_many, resumption_many
from ..finetune.training.reporters import check_of_many
from ..finetune.training.resolve import resolve
from .adapter_option import check_name
from .effective_options import effective_options, say_config
from .finetune_checks import asked_for, counted, course_of, said_before
from .finetune_complete import complete_many
from .finetune_report import Trained, write_report
from .interrupted import saying_how_to_resume
from .option_names import as_options
from .terminal import say


def run(arguments, data: dict[str, Part], adapter) -> None:
    """data: by the names of the adapters; adapter: what --adapter names, with which each begins."""
    check_of_many(arguments.report_to)
    asked, settings = asked_for(arguments), {}
    for name, its in data.items():
        settings[name] = resolve(asked | its.settings, len(its.examples), adapter)
        check_by_rows(settings[name].method)
        if its.held_out is None:
            with about(name):
                split(its.examples, settings[name].eval_fraction, settings[name].seed)
    options = effective_options(arguments, settings.values())
    if arguments.print_config:
        say_config(options)
        return
    read = {name: hashes_of(settings[name], its.examples, its.held_out) for name, its in data.items()}
    if not arguments.resume:
        open_many(arguments.output, settings, arguments.overwrite)
    elif not arguments.output.is_dir():
        resumption_many(arguments.output, settings, read)  # raises UserError, since there is no checkpoint
    with alone_in_many(arguments.output, settings):
        threads.use(arguments.threads)
        _train(arguments, settings, data, options, read)


def _train(arguments, settings, data, options, read) -> None:
    output = arguments.output
    saved, damaged = resumption_many(output, settings, read) if arguments.resume else (None, [])
    if arguments.resume and saved is None:
        say(f"the run in {output} is complete: all of {', '.join(settings)}")
        complete_many(arguments, settings, data, options)
        return
    calm_libraries()
    import torch

    from ..finetune.training import ready_many, train_many
    from .progress import SayEvaluations, SayTime

    for name, its in settings.items():
        remedy = "another value of its product" if arguments.by_product else "--data NAME=FILE"
        check_name(name, f"--data {its.data}", remedy)
    examples = {name: its.examples for name, its in data.items()}
    held_out = {name: its.held_out for name, its in data.items() if its.held_out is not None}
    process = resident_bytes()
    ready = ready_many.make_ready_many(settings, examples, held_out)
    for name, its in ready.runs.items():
        for line in _plan(its.settings, its.data):
            say(as_options(f"{name}: {line}", arguments))
        if name in held_out and (both := leaked(examples[name], held_out[name])):
            few = f"{both} of {len(held_out[name])} examples"
            say(f"{name}: warning: the questions of {few} of --eval-data are in --data too")
    first = next(iter(settings.values()))
    size, noun = first.batch_size, "packed row" if first.packing else "example"
    adapters = counted(len(settings), "adapter")
    say(f"a batch holds {counted(size, noun)} of each of {adapters}: {size * len(settings)} rows")
    if oversubscribed := threads.why_oversubscribed(torch.get_num_threads()):
        say(as_options(oversubscribed, arguments))
    rows = [row for its in ready.runs.values() for row in its.data.rows]
    for line in said_before(ready.model, first, rows, process, len(settings)):
        say(as_options(line, arguments))
    if saved is not None:
        say(f"{'; '.join([*damaged, 'going on'])} from {saved.path}")
    else:
        for name, why in begin_many(output, settings, options, read).items():
            say(f"{name} stays: {why}")
    can_be_resumed = functools.partial(can_be_resumed_many, output, settings, read)
    longest = max(ready.runs, key=lambda name: ready.runs[name].settings.steps(len(ready.runs[name].data.rows)))

    def callbacks(name: str) -> list:
        return [SayEvaluations(name), *([SayTime(name)] if name == longest else [])]

    with saying_how_to_resume(can_be_resumed, arguments.overwrite):
        metrics = train_many.fine_tune_many(ready, output, callbacks, saved, arguments.report_to or ())
    if not arguments.keep_checkpoints:
        remove_checkpoints(output)
    for name, its in metrics.items():
        for line in after_training(its):
            say(as_options(f"{name}: {line}", arguments))
    if arguments.report:
        trained = {
            name: Trained(its, output / name, examples[name], ready.runs[name].data.held_out_examples)
            for name, its in metrics.items()
        }
        write_report(arguments, options, ready, trained, ready.only)
    files = "loss.png and report.html are" if arguments.report else "loss.png is"
    say(f"adapter, README.md and metrics.json of each are in {output}/NAME; {files} in {output}")
    peak = max(its["peak_memory_bytes"] for its in metrics.values())
    say(f"peak memory: {peak / 1e9:.2f} GB (resident set of this process)")
    model = next(iter(settings.values())).model
    quantize = f" --quantize {arguments.quantize}" if arguments.quantize else ""
    adapters = " ".join(f"--adapter {shlex.quote(str(output / name))}" for name in settings)
    say(f"try them: pypeft-fast chat --model {shlex.quote(model)}{quantize} {adapters}")


def _plan(settings, data) -> list[str]:
    """What is said of one adapter before training."""
    return [
        "; ".join(course_of(settings, data)),
        *shortened(data, settings.max_length),
        *before_training(settings, data),
    ]
