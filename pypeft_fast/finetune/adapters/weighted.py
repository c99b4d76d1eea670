"""Combines adapters to one adapter with weights, by PEFT's add_weighted_adapter, without the base model."""

from pathlib import Path

import torch
from peft import PeftConfig
from safetensors import SafetensorError

import pypeft_fast

from ...model.files.lora_fields import keeps_base, unusual
from ..chat_template import FILE as TEMPLATE
from ..chat_template import common_template
from ..errors import UserError, as_user_error
from ..library_errors import LIBRARY_ERRORS
from ..text import quoted
from ..whole_files import new_folder, write_whole
from .combinations import is_pruned, read_combined
from .contradictions import contradictions
from .files import read_adapter
from .hollow import hollow_base

COMBINED = "default"  # PEFT saves the adapter of this name into the folder itself


def combined(
    folders: list[Path],
    weights: list[float],
    method: str = "cat",
    *,
    rank: int | None = None,
    density: float | None = None,
    seed: int = 0,
):
    """A PeftModel over a hollow base, whose adapter "default" is the combination of the adapters in the folders.

    method: one of COMBINATIONS. rank: of the result of a method with svd; the largest rank if None. density: the share
    of values that a pruning method keeps, above 0 and at most 1. seed: of the values that dare_* drops.

    UserError if a folder has no whole adapter, the method cannot combine them, the rank of a result of svd exceeds
    min(N, K) of a layer [N, K], or an adapter has a feature that a sum would lose: magnitudes of DoRA, biases,
    modules_to_save, trained tokens, initial values that change the base model.
    """
    adapters = read_combined(folders, weights, method)
    with as_user_error("the adapters cannot be combined", LIBRARY_ERRORS):
        configs = [PeftConfig.from_pretrained(str(folder)) for folder in folders]
    for folder, config in zip(folders, configs, strict=True):
        _check_plain(folder, config)
    base = hollow_base({name: shape for its in adapters for name, shape in its.shapes.items()})
    layers = {name: list(its.weight.shape) for name, its in base.named_modules() if isinstance(its, torch.nn.Linear)}
    task, transposed = configs[0].task_type, configs[0].fan_in_fan_out
    names = [f"combined_{i}" for i in range(len(folders))]  # PEFT mistakes a number for the block of this number
    model = _loaded(base, folders, configs, names)
    first = model.peft_config[names[0]]
    options = {}
    if first.peft_type == "LORA":
        if method.endswith("svd"):
            _check_svd(layers, configs, rank)
        # PEFT copies these fields of the first adapter. The weights of the result have its scaling in them.
        first.use_rslora, first.init_lora_weights = False, True
        options = {"combination_type": method, "svd_rank": rank, "svd_full_matrices": False}
        options |= {"density": density} if is_pruned(method) else {}
    with as_user_error("the adapters cannot be combined", LIBRARY_ERRORS), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.base_model.add_weighted_adapter(names, weights, COMBINED, **options)
    result = model.peft_config[COMBINED]
    result.task_type, result.fan_in_fan_out, result.inference_mode = task, transposed, True
    return model


def _loaded(base, folders: list[Path], configs: list, names: list[str]):
    """A PeftModel with the adapters under these names. Loading checks that each config and its tensors fit together."""
    model = None
    for name, folder, config in zip(names, folders, configs, strict=True):
        config.task_type = None  # the hollow base has no forward pass
        config.fan_in_fan_out = False  # its layers are nn.Linear
        with as_user_error(f"`adapter` {folder} cannot be loaded", LIBRARY_ERRORS):
            if model is None:
                model = pypeft_fast.PeftModel.from_pretrained(base, str(folder), adapter_name=name, config=config)
            else:
                model.load_adapter(str(folder), name, config=config)
    return model


def save_combined(folders: list[Path], weights: list[float], method: str, output: Path, **options) -> None:
    """Writes the combination of adapters into a new folder; after an error there is no folder.

    The folder has the chat template of the adapters. options: of `combined`.

    UserError as from `combined`; also if the chat templates differ, a value of the result is NaN or infinite, or the
    folder cannot be written.
    """
    template = common_template(folders)
    model = combined(folders, weights, method, **options)
    kinds = (OSError, RuntimeError, SafetensorError)
    with as_user_error(f"`output` {output} cannot be written", kinds), new_folder(output) as scratch:
        model.save_pretrained(str(scratch), selected_adapters=[COMBINED])
        if faults := contradictions(scratch, read_adapter(scratch)):
            raise UserError(
                f"`weights` {' '.join(map(str, weights))} give a broken adapter: {'; '.join(faults)}; give smaller "
                "weights, and look for broken adapters with `pypeft-fast inspect`"
            )
        if template is not None:
            write_whole(scratch / TEMPLATE, template.encode())


def _check_svd(layers: dict[str, list[int]], configs: list, rank: int | None) -> None:
    """UserError if the rank of the result exceeds min(N, K) of a layer [N, K]: svd has no more singular values."""
    largest = max(value for its in configs for value in (its.r, *(its.rank_pattern or {}).values()))
    name = min(layers, key=lambda layer: min(layers[layer]))
    limit = min(layers[name])
    if (rank or largest) > limit:
        what = f"`rank` {rank}" if rank else f"the largest rank of the adapters, {largest},"
        raise UserError(
            f"{what} is above {limit}, the largest rank of an update of the layer {name} {layers[name]}; give a "
            f"`rank` of at most {limit}"
        )


def _check_plain(folder: Path, config) -> None:
    if config.peft_type == "LORA":
        fields = unusual(config)
        if config.bias != "none":
            fields.append("bias")
        if not keeps_base(config.init_lora_weights):
            fields.append("init_lora_weights")
    else:
        fields = ["modules_to_save"] if config.modules_to_save else []
    if fields:
        value = quoted(getattr(config, fields[0]))
        raise UserError(
            f"{folder} has {fields[0]} = {value}, which a weighted sum of adapters would lose; merge such an adapter "
            "into the base model instead"
        )
