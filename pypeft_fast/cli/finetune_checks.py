"""What `pypeft-fast finetune` checks and says, of one adapter and of several. Imports no PyTorch."""

import dataclasses
from pathlib import Path

from ..finetune.adapters.files import Adapter, check_files, read_adapter
from ..finetune.chat_template import template_file
from ..finetune.data.named import named_data
from ..finetune.data.products import Part, of_files, of_one, of_products
from ..finetune.errors import UserError
from ..finetune.training.settings import Settings


def asked_for(arguments) -> dict:
    """{field of Settings: what was given for it}, with data and eval_data as the lists that they are."""
    return {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Settings)}


def starting_adapter(arguments) -> Adapter | None:
    """What --adapter names. UserError if its files are not whole."""
    if arguments.adapter is None:
        return None
    folder = Path(arguments.adapter)
    if not folder.is_dir():
        raise UserError(f"--adapter {arguments.adapter}: no such folder")
    check_files(folder)
    return read_adapter(folder)


def read_data_options(arguments) -> tuple[dict[str | None, str], dict[str | None, str]]:
    """--data and --eval-data by the names of their adapters, None for the one that has no name.

    UserError if the names of --eval-data are not among those of --data.
    """
    data = named_data(arguments.data)
    held_out = named_data(arguments.eval_data, "eval_data") if arguments.eval_data else {}
    for name, its in held_out.items():
        if name in data:
            continue
        if None in data:
            raise UserError(f"--eval-data {name}={its} names an adapter, and --data names none: leave {name}= out")
        names = ", ".join(data)
        if name is None:
            raise UserError(f"--eval-data {its} has no name: give NAME={its}, of one of the adapters: {names}")
        raise UserError(f"--eval-data {name}={its}: no --data has the name {name}; there are: {names}")
    return data, held_out


def parts_of(arguments) -> dict[str | None, Part]:
    """The examples of each adapter by its name; of one that has no name, by None.

    UserError: a file, a record or a name is not accepted, or options do not go together.
    """
    data, eval_data = read_data_options(arguments)
    if arguments.by_product or arguments.product is not None:
        option = "--by-product" if arguments.by_product else "--product"
        if None not in data:
            raise UserError(f"{option} does not go with --data NAME=FILE; give one --data FILE")
        if arguments.by_product:
            return of_products(data[None], eval_data.get(None))
    if None in data:
        return {None: of_one(data[None], eval_data.get(None), arguments.product)}
    return of_files(data, eval_data)


def course_of(settings: Settings, data) -> list[str]:
    """The numbers of examples, and of steps and their size."""
    packed = f" in {counted(len(data.rows), 'packed row')}" if settings.packing else ""
    size = settings.batch_size * settings.gradient_accumulation
    each = counted(size, "packed row" if settings.packing else "example")
    return [
        f"{len(data.train)} examples to train on{packed}, {len(data.held_out)} held out",
        f"{counted(settings.steps(len(data.rows)), 'step')} of {each}, learning rate {settings.learning_rate:g}",
    ]


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def said_before(ready_model, settings: Settings, rows, process: int, adapters: int = 1) -> list[str]:
    """What is trained, the chat template that a starting adapter brings, and the predicted peak memory.

    process: the resident set before the model was loaded.
    """
    from ..finetune.plan.predict import predict
    from ..finetune.report.scope import scope

    longest = max(len(row.input_ids) for row in rows)
    try:
        peak = predict(ready_model, settings, longest, process, adapters).peak
        memory = f"predicted peak memory: {peak / 1e9:.2f} GB"
    except UserError as error:
        memory = f"no prediction of the memory: {error}"
    return [scope(ready_model, settings.method), parameters_of(ready_model), *template_of(settings), memory]


def template_of(settings: Settings) -> list[str]:
    """A line if the run has the chat template of the adapter with which the run begins."""
    if settings.adapter is None or settings.chat_template is None:
        return []
    if settings.chat_template != template_file(settings.adapter):
        return []
    return [f"chat template: that of `adapter`, {settings.chat_template}"]


def parameters_of(model) -> str:
    trainable, total = model.get_nb_trainable_parameters()
    return f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f}"
