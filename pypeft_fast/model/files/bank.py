"""One layer of PEFT's LoRA files, for a bank of adapters: MultiLoRALinear."""

import math
import os
import reprlib
from typing import NamedTuple

import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open

from .check import check_values, damaged
from .config import read_config
from .lora_fields import keeps_base, unusual
from .names import PREFIX
from .reading import opened

# Fields that are not PLAIN, and concern other layers, or the values before training.
_ELSEWHERE = {"modules_to_save", "trainable_token_indices", "ensure_weight_tying", "eva_config"}


class BankPart(NamedTuple):
    """An adapter of one layer: lora_A [r, K], lora_B [N, r], as the arguments of MultiLoRALinear.add."""

    lora_A: torch.Tensor
    lora_B: torch.Tensor
    scaling: float
    dropout: float


def read_for_bank(bank, folder: str | os.PathLike, module: str | None = None) -> BankPart:
    """The part of an adapter's files that is for the layer `module`, checked against the bank, which does not change.

    ValueError names the file: it is damaged, is not of plain LoRA, has no such layer, or does not fit the bank.
    """
    with opened(folder) as pair:
        config, _ = read_config(pair.config_path, pair.config)
        _check_plain(pair.config_path, config)
        path = pair.weights_path
        try:
            with safe_open(pair.pinned, framework="pt") as file:
                module = _module_in(path, list(file.keys()), module)
                keys = [key for key in file.keys() if key.startswith(f"{PREFIX}{module}.")]
                tensors = {key: file.get_tensor(key).clone() for key in keys}  # the file may change later
            pair.check_unwritten()
        except SafetensorError as error:
            raise damaged(path, error) from error
    wanted = [f"{PREFIX}{module}.lora_{matrix}.weight" for matrix in "AB"]
    if extra := sorted({*tensors} ^ {*wanted}):
        what = "has no" if extra[0] in wanted else "also has"
        raise ValueError(f"{path} {what} {extra[0]}: a bank holds one lora_A and one lora_B for each adapter")
    check_values(path, tensors, dict.fromkeys(tensors, torch.empty((), device="meta")))
    A, B = (tensors[key] for key in wanted)
    r = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), module), config.r)
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), module), config.lora_alpha)
    if A.shape[:1] != (r,):
        raise ValueError(f"{path} does not fit its config: {wanted[0]} has shape {tuple(A.shape)}, expected r={r} rows")
    part = BankPart(A, B, alpha / (math.sqrt(r) if config.use_rslora else r), config.lora_dropout)
    bank._check(str(path), *part)
    return part


def _check_plain(path, config):
    """ValueError if the adapter is more than scaling * B A beside the base model's own weight."""
    if config.peft_type == "LORA" and not keeps_base(config.init_lora_weights):
        raise ValueError(
            f"{path}: init_lora_weights={config.init_lora_weights!r} alters the base model's weight, and a "
            "MultiLoRALinear keeps it; save the adapter with path_initial_model_for_weight_conversion, which makes it "
            "plain LoRA"
        )
    if config.peft_type != "LORA" or (fields := sorted({*unusual(config)} - _ELSEWHERE)):
        named = "peft_type" if config.peft_type != "LORA" else fields[0]
        value = reprlib.repr(getattr(config, named))
        raise ValueError(f"{path}: {named}={value}: a MultiLoRALinear holds plain LoRA adapters; load another one")
    if config.bias != "none":
        raise ValueError(
            f"{path}: bias={config.bias!r}: the adapter replaces biases of the base model, and a MultiLoRALinear keeps "
            'them; train the adapter with bias="none"'
        )


def _module_in(path, keys, module) -> str:
    """The name of the layer: `module`, or that of the only layer in the file."""
    end = ".lora_A.weight"
    layers = [key.removeprefix(PREFIX).removesuffix(end) for key in keys if key.endswith(end)]
    if module is None and len(layers) == 1:
        return layers[0]
    if module not in layers:
        shown = ", ".join(layers[:8]) + (", ..." if len(layers) > 8 else "")
        raise ValueError(f"module={module!r}: the layers in {path} are {shown or 'none'}; give one of them")
    return module


def put_into_bank(bank, parts: dict[str, BankPart]) -> None:
    """Adds adapters, or replaces those that the bank has. ValueError, before any change, if there is no room for all.

    A row whose index was made before meets the new values of a replaced adapter.
    """
    new = [name for name in parts if name not in bank.adapter_names]
    if len(new) > (room := bank.max_adapters - len(bank.adapter_names)):
        raise ValueError(
            f"the bank has room for {room} more adapters of max_adapters={bank.max_adapters}, and {len(new)} are new: "
            f"{', '.join(new)}; remove some, give `names`, or make a larger bank"
        )
    for name, part in parts.items():
        put = bank.add if name in new else bank.replace
        put(name, part.lora_A, part.lora_B, scaling=part.scaling, dropout=part.dropout)
