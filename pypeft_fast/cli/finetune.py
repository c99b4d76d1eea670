"""`pypeft-fast finetune`: an adapter from a base model and data."""

import dataclasses
import re
import sys

from .data import load_data
from .errors import UserError, as_user_error, need
from .json_text import check_text
from .methods import METHODS, method_config, options_of
from .models import DTYPES, load_base
from .targets import check_targets, short_names
from .terminal import calm_libraries, quoted, say


def run(arguments) -> None:
    need("transformers", "accelerate", "matplotlib", "jinja2")
    import torch
    import transformers

    import pypeft_fast

    from . import run_folder, train
    from .tokens import Collator, check_ids, check_length

    calm_libraries()
    settings = _settings(arguments, train.Settings)
    examples = load_data(settings.data)
    output, going_on = arguments.output, run_folder.GoingOn(None)
    if arguments.resume:
        going_on = run_folder.go_on(output, settings)
    else:
        run_folder.open_new(output, arguments.overwrite)
    if going_on.steps_done is not None:
        say(f"the run in {output} is complete: all {going_on.steps_done} steps are done")
        return

    base, tokenizer = load_base(settings.model, DTYPES[settings.dtype])
    data = train.prepare(tokenizer, examples, settings)
    check_ids(base, [token for encoded in data.train + data.held_out for token in encoded.input_ids])
    longest = max(len(encoded.input_ids) for encoded in data.train + data.held_out)
    check_length(base, longest, settings.virtual_tokens, settings.max_length)
    say(f"{len(data.train)} examples to train on, {len(data.held_out)} held out")
    for line in _shortened(data, settings.max_length):
        say(line)
    transformers.set_seed(settings.seed)
    model = _adapted(pypeft_fast, base, settings)
    model.print_trainable_parameters()
    if going_on.checkpoint and going_on.damaged:
        say(f"{'; '.join(going_on.damaged)}: going on from {going_on.checkpoint.name}")
    elif going_on.checkpoint:
        say(f"going on from {going_on.checkpoint}")
    else:
        for name, why in run_folder.begin(output, settings).items():
            say(f"{name} stays: {why}")

    try:
        with as_user_error("no memory is left; take a smaller --batch-size", (torch.OutOfMemoryError, MemoryError)):
            metrics = train.fine_tune(model, data, Collator.of(tokenizer), settings, output, going_on.checkpoint)
    except KeyboardInterrupt:
        if run_folder.can_go_on(output):
            say("\nto go on later, give the same command with --resume", file=sys.stderr, keep="\n")
        raise
    if data.held_out:
        say(f"loss on held-out data: {metrics['eval_loss_before']:.3f} before, {metrics['eval_loss_after']:.3f} after")
    say(f"adapter, metrics.json and loss.png are in {output}")
    say(f"try it: pypeft-fast chat --model {settings.model} --adapter {output}")


def _shortened(data, max_length: int) -> list[str]:
    """What --max-length took from the examples, a sentence each."""
    every, lines = len(data.train) + len(data.held_out) + data.dropped, []
    if data.cut:
        lines.append(f"{data.cut} of {every} examples cut at {max_length} tokens (longest {data.longest})")
    if data.dropped:
        lines.append(f"{data.dropped} of {every} examples left out: --max-length {max_length} ends before their answer")
    return lines


def _adapted(library, base, settings):
    """The base model with a new adapter. UserError if the method, its options and this model do not go together."""
    names = [name for name, its in base.named_modules() if getattr(getattr(its, "weight", None), "ndim", 0) == 2]
    check_targets(settings.target_modules, names)
    kinds = (ValueError, TypeError, RuntimeError, OverflowError, MemoryError, re.error)  # also: out of memory
    try:
        with as_user_error("the adapter cannot be made", kinds):
            return library.get_peft_model(base, method_config(library, settings))
    except UserError as error:
        if settings.target_modules in (None, "all-linear"):
            raise
        given = f"--target-modules is {quoted(settings.target_modules)}"
        raise UserError(
            f"{error}; {given}, and the layers of this model are called {', '.join(short_names(names))}"
        ) from error


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
    if names is not None:
        check_text(names, "--target-modules")
    options = {name for method in METHODS.values() for name in method.options}
    given |= options_of(arguments.method, {name: given[name] for name in options})
    if given["learning_rate"] is None:
        given["learning_rate"] = METHODS[arguments.method].learning_rate
    if arguments.method == "prefix" and arguments.gradient_checkpointing:
        raise UserError("--gradient-checkpointing does not go with --method prefix: it drops the cache that holds it")
    return kind(**given)
