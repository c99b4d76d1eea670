"""`pypeft-fast finetune`: an adapter from a base model and data."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

from .data import load_data
from .errors import UserError, as_user_error, need
from .methods import METHODS, method_config, options_of
from .models import DTYPES, load_base

SETTINGS_FILE, METRICS_FILE = "finetune.json", "metrics.json"


def run(arguments) -> None:
    need("transformers", "accelerate", "matplotlib", "jinja2")
    import transformers

    import pypeft_fast

    from . import train
    from .tokens import Collator, check_ids

    transformers.utils.logging.disable_progress_bar()
    settings = _settings(arguments, train.Settings)
    examples = load_data(settings.data)
    output = arguments.output
    checkpoint = _claim(output, settings, arguments.resume, arguments.overwrite, train.last_checkpoint)
    if checkpoint and (output / METRICS_FILE).is_file() and (end := train.finished(checkpoint)):
        print(f"the run in {output} is complete: all {end.global_step} steps are done")
        return

    base, tokenizer = load_base(settings.model, DTYPES[settings.dtype])
    data = train.prepare(tokenizer, examples, settings)
    check_ids(base, [token for encoded in data.train + data.held_out for token in encoded.input_ids])
    print(f"{len(data.train)} examples to train on, {len(data.held_out)} held out")
    if data.dropped:
        print(f"{data.dropped} left out: --max-length {settings.max_length} ends before their answer")
    transformers.set_seed(settings.seed)
    with as_user_error("the adapter cannot be made", (ValueError, TypeError, RuntimeError)):  # or: out of memory
        model = pypeft_fast.get_peft_model(base, method_config(pypeft_fast, settings))
    model.print_trainable_parameters()
    if checkpoint:
        print(f"going on from {checkpoint}")
    else:
        _clear(output)
    train.write_json(output / SETTINGS_FILE, dataclasses.asdict(settings))

    try:
        metrics = train.fine_tune(model, data, Collator.of(tokenizer), settings, output, checkpoint)
    except KeyboardInterrupt:
        if train.last_checkpoint(output):
            print("\nto go on later, give the same command with --resume", file=sys.stderr)
        raise
    if data.held_out:
        print(
            f"loss on held-out data: {metrics['eval_loss_before']:.3f} before, {metrics['eval_loss_after']:.3f} after"
        )
    print(f"adapter, metrics.json and loss.png are in {output}")
    print(f"try it: pypeft-fast chat --model {settings.model} --adapter {output}")


def _settings(arguments, kind):
    """The arguments as Settings. --target-modules with a comma is a list; else one name, dotted or not, or an
    expression.

    Raises UserError for an option that the method does not have.
    """
    given = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(kind)}
    given["max_steps"] = arguments.max_steps or -1
    names = arguments.target_modules
    if names not in (None, "all-linear") and ("," in names or re.fullmatch(r"[\w.]+", names)):
        given["target_modules"] = [name.strip() for name in names.split(",") if name.strip()]
    options = {name for method in METHODS.values() for name in method.options}
    given |= options_of(arguments.method, {name: given[name] for name in options})
    if given["learning_rate"] is None:
        given["learning_rate"] = METHODS[arguments.method].learning_rate
    if arguments.method == "prefix" and arguments.gradient_checkpointing:
        raise UserError("--gradient-checkpointing does not go with --method prefix: it drops the cache that holds it")
    return kind(**given)


def _claim(output: Path, settings, resume: bool, overwrite: bool, last_checkpoint) -> Path | None:
    """Makes the output folder and returns the checkpoint to go on from, if any; removes nothing.

    Raises UserError: the folder holds an earlier run and neither --resume nor --overwrite was given; --resume finds no
    checkpoint, or one of a run with other settings; the folder cannot be written.
    """
    with as_user_error(f"--output {output} cannot be written", (OSError,)):
        output.mkdir(parents=True, exist_ok=True)
    if resume:
        checkpoint = last_checkpoint(output)
        if checkpoint is None or not (output / SETTINGS_FILE).is_file():
            raise UserError(f"--resume: no complete checkpoint in {output}; start without --resume")
        saved = json.loads((output / SETTINGS_FILE).read_text(encoding="utf-8"))
        for name, value in dataclasses.asdict(settings).items():
            if saved.get(name) != value:
                raise UserError(
                    f"--resume: --{name.replace('_', '-')} was {saved.get(name)!r} in the run to go on with and is "
                    f"{value!r} now; give the same options"
                )
        return checkpoint
    earlier = [*output.glob("checkpoint-*"), *output.glob("adapter_*")]
    if earlier and not overwrite:
        raise UserError(
            f"--output {output} already holds {earlier[0].name}; go on with --resume, replace it with --overwrite, or "
            "name another folder"
        )
    return None


def _clear(output: Path) -> None:
    """Removes what tells of an earlier run's course; its adapter stays until this run's takes its place."""
    (output / METRICS_FILE).unlink(missing_ok=True)
    for path in output.glob("checkpoint-*"):
        shutil.rmtree(path)
