"""`pypeft-fast finetune`: trains an adapter for a base model on data."""

import shlex

from ..finetune import threads
from ..finetune.base_models import check_base
from ..finetune.calm import calm_libraries
from ..finetune.chat_template import read_template
from ..finetune.data.split import leaked
from ..finetune.errors import need
from ..finetune.memory import resident_bytes
from ..finetune.quantized import check_quantize
from ..finetune.report.advice import after_training, before_training, shortened
from ..finetune.training import run_folder
from ..finetune.training.checkpoints import remove as remove_checkpoints
from ..finetune.training.hashes import hashes_of
from ..finetune.training.reporters import check_reporters
from ..finetune.training.resolve import resolve
from . import finetune_many
from .effective_options import effective_options, say_config
from .finetune_checks import asked_for, course_of, parts_of, said_before, starting_adapter
from .finetune_complete import complete_one
from .finetune_report import Trained, write_report
from .interrupted import saying_how_to_resume
from .option_names import as_options
from .terminal import say


def run(arguments) -> None:
    need("transformers", "accelerate", "matplotlib", "jinja2", "tqdm")
    check_base(arguments.model)
    check_quantize(arguments.quantize)
    check_reporters(arguments.report_to)
    if arguments.chat_template is not None:
        read_template(arguments.chat_template)
    adapter = starting_adapter(arguments)
    parts = parts_of(arguments)
    if None not in parts:
        finetune_many.run(arguments, parts, adapter)
        return
    part = parts[None]
    settings = resolve(asked_for(arguments) | part.settings, len(part.examples), adapter)
    options = effective_options(arguments, [settings])
    if arguments.print_config:
        say_config(options)
        return
    read = hashes_of(settings, part.examples, part.held_out)
    if not arguments.resume:
        run_folder.open_new(arguments.output, arguments.overwrite)
    elif not arguments.output.is_dir():
        run_folder.resumption(arguments.output, settings, read)  # raises UserError, since there is no checkpoint
    with run_folder.alone(arguments.output):
        threads.use(arguments.threads)
        _train(arguments, settings, part, options, read)


def _train(arguments, settings, part, options, read) -> None:
    output, examples, held_out = arguments.output, part.examples, part.held_out
    resumption = run_folder.resumption(output, settings, read) if arguments.resume else run_folder.Resumption(None)
    if resumption.steps_done is not None:
        say(f"the run in {output} is complete: all {resumption.steps_done} steps are done")
        complete_one(arguments, settings, part, options)
        return
    calm_libraries()
    import torch

    from ..finetune.training import ready as loading
    from ..finetune.training import train
    from .progress import SayEvaluations, SayTime

    process = resident_bytes()
    ready = loading.make_ready(settings, examples, held_out)
    data = ready.data

    for line in (*course_of(settings, data), *shortened(data, settings.max_length), *before_training(settings, data)):
        say(as_options(line, arguments))
    if held_out is not None and (both := leaked(examples, held_out)):
        say(f"warning: the questions of {both} of {len(held_out)} examples of --eval-data are in --data too")
    if oversubscribed := threads.why_oversubscribed(torch.get_num_threads()):
        say(as_options(oversubscribed, arguments))
    for line in said_before(ready.model, settings, data.rows, process):
        say(as_options(line, arguments))
    if resumption.checkpoint and resumption.damaged:
        say(f"{'; '.join(resumption.damaged)}: going on from {resumption.checkpoint.name}")
    elif resumption.checkpoint:
        say(f"going on from {resumption.checkpoint}")
    else:
        for name, why in run_folder.begin(output, settings, options, read).items():
            say(f"{name} stays: {why}")

    given = ready.model, data, ready.collator, settings, output, resumption.checkpoint
    with saying_how_to_resume(lambda: run_folder.can_be_resumed(output), arguments.overwrite):
        metrics = train.fine_tune(*given, [SayEvaluations(), SayTime()], arguments.report_to or ())
    if not arguments.keep_checkpoints:
        remove_checkpoints(output)
    for line in after_training(metrics):
        say(as_options(line, arguments))
    name = output.resolve().name
    if arguments.report:
        write_report(arguments, options, ready, {name: Trained(metrics, output, examples, data.held_out_examples)})
    files = "loss.png and report.html" if arguments.report else "and loss.png"
    say(f"adapter, README.md, metrics.json, {files} are in {output}")
    say(f"peak memory: {metrics['peak_memory_bytes'] / 1e9:.2f} GB (resident set of this process)")
    quantize = f" --quantize {settings.quantize}" if settings.quantize else ""
    say(
        f"try it: pypeft-fast chat --model {shlex.quote(settings.model)}{quantize} --adapter {shlex.quote(str(output))}"
    )
