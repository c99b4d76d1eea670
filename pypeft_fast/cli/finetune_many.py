"""`pypeft-fast finetune` with several --data NAME=FILE: an adapter for each, over one base model in one run."""

import shlex

from ..finetune import threads
from ..finetune.adapters.methods import check_by_rows
from ..finetune.calm import calm_libraries
from ..finetune.data.load import load_data
from ..finetune.data.split import leaked
from ..finetune.errors import UserError, as_user_error
from ..finetune.report.advice import after_training, before_training, shortened
from ..finetune.training.many_folder import alone_in_many, begin_many, open_many
from ..finetune.training.resolve import resolve
from .adapter_option import check_name
from .finetune_checks import asked_for, counted, parameters_of
from .option_names import as_options
from .terminal import say


def run(arguments, data: dict[str, str], eval_data: dict[str, str], adapter) -> None:
    """data and eval_data: by the names of the adapters; adapter: what --adapter names, with which each begins."""
    for option, given in (("resume", arguments.resume), ("keep_checkpoints", arguments.keep_checkpoints)):
        if given:
            raise UserError(
                f"`{option}` does not go with --data NAME=FILE: a run of several adapters writes no checkpoints; leave "
                "it out, or train one adapter in a run"
            )
    asked, settings = asked_for(arguments), {}
    examples = {name: load_data(its) for name, its in data.items()}
    held_out = {name: load_data(its, "eval_data") for name, its in eval_data.items()}
    for name, its in examples.items():
        its_data = {"data": data[name], "eval_data": eval_data.get(name)}
        settings[name] = resolve(asked | its_data, len(its), adapter)
        check_by_rows(settings[name].method)
    open_many(arguments.output, settings, arguments.overwrite)
    with alone_in_many(arguments.output, settings):
        threads.use(arguments.threads)
        _train(arguments, settings, examples, held_out)


def _train(arguments, settings, examples, held_out) -> None:
    import torch

    from ..finetune.training.ready_many import make_ready_many
    from ..finetune.training.train_many import fine_tune_many
    from .progress import SayEvaluations

    output = arguments.output
    calm_libraries()
    for name in settings:
        check_name(name, f"--data {name}={settings[name].data}", "--data NAME=FILE")
    ready = make_ready_many(settings, examples, held_out)
    for name, its in ready.runs.items():
        for line in _plan(its.settings, its.data):
            say(as_options(f"{name}: {line}", arguments))
        if name in held_out and (both := leaked(examples[name], held_out[name])):
            few = f"{both} of {len(held_out[name])} examples"
            say(f"{name}: warning: the questions of {few} of --eval-data are in --data too")
    size = next(iter(settings.values())).batch_size
    say(f"a batch holds {size} examples of each of {counted(len(settings), 'adapter')}: {size * len(settings)} rows")
    if crowded := threads.crowded(torch.get_num_threads()):
        say(as_options(crowded, arguments))
    say(parameters_of(ready.model))
    for name, why in begin_many(output, settings).items():
        say(f"{name} stays: {why}")

    with as_user_error("no memory is left; take a smaller --batch-size", (torch.OutOfMemoryError, MemoryError)):
        metrics = fine_tune_many(ready, output, lambda name: [SayEvaluations(name)])
    for name, its in metrics.items():
        for line in after_training(its):
            say(as_options(f"{name}: {line}", arguments))
    say(f"adapter, README.md and metrics.json of each are in {output}/NAME; loss.png is in {output}")
    peak = max(its["peak_memory_bytes"] for its in metrics.values())
    say(f"peak memory: {peak / 1e9:.2f} GB (resident set of this process)")
    model = next(iter(settings.values())).model
    quantize = f" --quantize {arguments.quantize}" if arguments.quantize else ""
    adapters = " ".join(f"--adapter {shlex.quote(str(output / name))}" for name in settings)
    say(f"try them: pypeft-fast chat --model {shlex.quote(model)}{quantize} {adapters}")


def _plan(settings, data) -> list[str]:
    """What is said of one adapter before training."""
    steps = counted(settings.steps(len(data.train)), "step")
    each = counted(settings.batch_size * settings.gradient_accumulation, "example")
    return [
        f"{len(data.train)} examples to train on, {len(data.held_out)} held out; {steps} of {each}, learning rate "
        f"{settings.learning_rate:g}",
        *shortened(data, settings.max_length),
        *before_training(settings, data),
    ]
