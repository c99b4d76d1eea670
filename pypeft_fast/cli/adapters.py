"""`pypeft-fast adapters`: lists, compares, merges and exports the adapters in folders."""

import json
from dataclasses import asdict

from ..finetune.adapters.files import read_adapter
from ..finetune.adapters.listing import adapters_below
from ..finetune.base_models import check_base
from ..finetune.calm import calm_libraries
from ..finetune.errors import UserError, need
from ..finetune.text import cut
from .adapters_merge import check_folder, merge
from .tables import print_table
from .terminal import say

LONGEST = 40  # characters of a cell


def run(arguments) -> None:
    {"list": _list, "diff": _diff, "merge": merge, "export": _export}[arguments.action](arguments)


def _list(arguments) -> None:
    found = adapters_below(arguments.folders)
    if not found:
        raise UserError(
            f"no adapter in {', '.join(map(str, arguments.folders))}; a folder of one has adapter_config.json"
        )
    if arguments.json:
        say(json.dumps([its.record() for its in found], indent=2), keep="\n")
        return
    need("rich")
    names = ("adapter", "method", "base", "r", "targets", "parameters", "bytes", "saved")
    print_table(names, [_cells(its.record(), its.targets) for its in found], ("r", "parameters", "bytes"))
    for its in found:
        if its.fault:
            say(f"{its.folder}: {its.fault}")


def _cells(its: dict, targets: str) -> list[str]:
    shown = [
        its["folder"],
        "broken" if its["fault"] else its["method"],
        cut(str(its["base"] or "-"), LONGEST),
        its["rank"],
        cut(targets, LONGEST),
        f"{its['parameters']:,}" if its["parameters"] else None,
        f"{its['bytes']:,}" if its["bytes"] else None,
        its["saved"][:16].replace("T", " ") if its["saved"] else None,
    ]
    return ["-" if cell is None else str(cell) for cell in shown]


def _diff(arguments) -> None:
    for folder in (arguments.first, arguments.second):
        check_folder(folder)
    from ..finetune.adapters.difference import config_differences, update_distances

    configs = config_differences(read_adapter(arguments.first), read_adapter(arguments.second))
    distances = update_distances(arguments.first, arguments.second)
    if arguments.json:
        shown = {"config": configs, "updates": {name: asdict(its) for name, its in distances.items()}}
        say(json.dumps(shown, indent=2), keep="\n")
        return
    need("rich")
    if configs:
        rows = [[name, *(cut(json.dumps(value), LONGEST) for value in pair)] for name, pair in configs.items()]
        print_table(("config", str(arguments.first), str(arguments.second)), rows)
    else:
        say("the configs agree")
    rows = [
        [name, str(its.layers), f"{its.first:.4g}", f"{its.second:.4g}", f"{its.relative:.2%}"]
        for name, its in distances.items()
    ]
    names = ("layers", "number", "norm of A's update", "of B's", "of the difference / A's")
    print_table(names, rows, names[1:])


def _export(arguments) -> None:
    need("transformers", "gguf")
    check_base(arguments.model)
    check_folder(arguments.adapter)
    if arguments.output.exists():
        raise UserError(f"--output {arguments.output} exists; name a new file")
    calm_libraries()
    from ..finetune.adapters.gguf_file import write_gguf
    from ..finetune.plan.skeleton import read_skeleton

    count = write_gguf(arguments.adapter, read_skeleton(arguments.model).config, arguments.output)
    say(f"{count} tensors are in {arguments.output}")
    say(f"try it: llama-cli -m BASE.gguf --lora {arguments.output}")
