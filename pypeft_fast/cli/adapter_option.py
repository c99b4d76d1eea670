"""--adapter in the subcommands that take several adapters, `chat` and `evaluate`: the names and folders."""

import sys
from pathlib import Path

from ..finetune import threads
from ..finetune.adapters.files import by_kind, check_files
from ..finetune.base_models import check_base
from ..finetune.calm import calm_libraries
from ..finetune.errors import UserError, need
from ..finetune.json_text import check_text
from ..finetune.quantized import DENSE, check_adapter, check_quantize, trained_over
from ..finetune.text import one_line, safe
from .terminal import say


def check_arguments(arguments) -> dict[str, Path]:
    """Checks --model, --quantize and --adapter, and returns the adapters, {name: folder}. Imports no PyTorch.

    UserError if a package is missing, if there is no such model or adapter, or if an adapter cannot run over a base
    model in the format of `--quantize`.
    """
    need("transformers", "jinja2")
    check_base(arguments.model)
    check_quantize(arguments.quantize)
    adapters = read_adapters(arguments.adapter)
    for folder in adapters.values():
        check_adapter(folder, arguments.quantize)
    return adapters


def import_libraries(arguments, adapters: dict[str, Path]) -> None:
    """Imports PyTorch with --threads, then PEFT, and prints a note for each adapter that was trained over a base model
    in another format.

    UserError if an adapter cannot have its name, a check that needs PEFT.
    """
    threads.use(arguments.threads)
    calm_libraries()
    check_names(adapters)
    for line in other_bases(adapters, arguments.quantize):
        say(line, file=sys.stderr)


def read_adapters(specs: list[str]) -> dict[str, Path]:
    """{name: folder} of `DIR` and `NAME=DIR`; a DIR may contain "=". Imports no PyTorch.

    UserError if there is no such folder, if a file in the folder is missing or not complete, or if a name occurs twice.
    """
    adapters: dict[str, Path] = {}
    for spec in specs:
        name, equals, folder = spec.partition("=")
        named = equals and (Path(folder).is_dir() or not Path(spec).is_dir())
        path = Path(folder if named else spec)
        name = name if named else path.resolve().name
        check_text(spec, f"--adapter {spec}")
        if not path.is_dir():
            raise UserError(f"--adapter {spec}: no such folder{f': {path}' if named else ''}")
        if name in adapters:
            raise UserError(f"--adapter {spec}: {name!r} is taken already; give it another name: --adapter NAME={path}")
        adapters[name] = path
    for path in adapters.values():
        check_files(path)
    return adapters


def check_one_kind(adapters: dict[str, Path]) -> None:
    """UserError if the adapters differ in peft_type: PEFT loads adapters of only one type on a model."""
    groups = {kind: next(iter(group.values())) for kind, group in by_kind(adapters).items() if kind is not None}
    if len(groups) > 1:
        first, second, *_ = groups.items()
        raise UserError(
            f"--adapter {second[1]} is of {second[0]} and --adapter {first[1]} of {first[0]}: one model can "
            "only hold adapters of one kind; run the command once for each kind"
        )


def check_names(adapters: dict[str, Path]) -> None:
    """UserError if an adapter cannot have its name. Imports PEFT."""
    for name, path in adapters.items():
        check_name(name, f"--adapter {path}", f"--adapter NAME={path}")


def check_name(name: str, given: str, remedy: str) -> None:
    """UserError, which names what was given and how to give another name, if an adapter cannot have this name."""
    if trouble := _cannot_name(name):
        raise UserError(f"{given}: {name!r} {trouble}; give it another name: {remedy}")


def other_bases(adapters: dict[str, Path], quantize: str | None) -> list[str]:
    """A note for each adapter that was trained over a base model in another format than `quantize`."""
    lines, ours = [], quantize or DENSE
    for path in adapters.values():
        theirs = trained_over(path)
        if theirs not in (None, ours):
            remedy = "without --quantize they are" if theirs == DENSE else f"--quantize {theirs} gives"
            lines.append(
                f"note: --adapter {path} was trained over a {_base(theirs)}, and this is a {_base(ours)}: the losses "
                f"and answers may differ a little; {remedy} those of the training"
            )
    return lines


def _base(format: str) -> str:
    return "dense base model" if format == DENSE else f"base model in {format}"


def _cannot_name(name: str) -> str | None:
    """Why an adapter cannot have this name, or None."""
    from pypeft_fast.model.files import check_adapter_name

    try:
        check_adapter_name(name)
    except ValueError as error:
        return f"cannot name an adapter ({one_line(str(error))})"
    return None if name == safe(name) else "cannot name an adapter (it holds control characters)"
