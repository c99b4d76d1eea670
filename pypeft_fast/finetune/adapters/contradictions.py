"""Finds contradictions between an adapter's tensors and its config, and invalid values; reads without PyTorch."""

import re
from pathlib import Path

from safetensors import deserialize

from ..text import cut
from .config_values import config_faults, is_rank
from .files import WEIGHTS, Adapter

# {dtype: (NumPy's name of the unsigned integer of the same width, a mask)}: a value is NaN or infinite if and only if
# all bits of the mask are 1.
NOT_FINITE = {
    "F64": ("uint64", 0x7FF0_0000_0000_0000),
    "F32": ("uint32", 0x7F80_0000),
    "F16": ("uint16", 0x7C00),
    "BF16": ("uint16", 0x7F80),
    "F8_E5M2": ("uint8", 0x7C),
    "F8_E4M3": ("uint8", 0x7F),  # only NaN: this dtype has no infinity
}
# {ending of a LoRA tensor's name: the dimension that is the rank}
RANK_AT = {
    "lora_A.weight": 0,
    "lora_B.weight": 1,
    "lora_embedding_A": 0,
    "lora_embedding_B": 1,
}


def contradictions(folder: Path, adapter: Adapter) -> list[str]:
    """The faults of an adapter whose files are complete, one sentence for each kind of fault."""
    wrong = config_faults(adapter.config)
    found = (_told("NaN or infinite values", _not_finite(folder / WEIGHTS)), *_virtual(adapter))
    return wrong + [sentence for sentence in found if sentence] + (_ranks(adapter) if not wrong else [])


def _not_finite(path: Path) -> list[str]:
    import numpy as np  # imported here: the command checks its arguments before it imports large packages

    names = []
    for name, its in deserialize(path.read_bytes()):
        if its["dtype"] in NOT_FINITE:
            kind, bits = NOT_FINITE[its["dtype"]]
            values, mask = np.frombuffer(its["data"], dtype=kind), np.dtype(kind).type(bits)
            if ((values & mask) == mask).any():
                names.append(name)
    return sorted(names)


def _ranks(adapter: Adapter) -> list[str]:
    """One sentence for each wrong rank: the LoRA tensors whose rank differs from that of a config without faults."""
    config = adapter.config
    if config.get("peft_type") != "LORA":
        return []
    wrong: dict[tuple[int, int], list[str]] = {}
    for name, shape in adapter.shapes.items():
        end = next((end for end in RANK_AT if name.endswith(f".{end}")), None)
        if end is None or len(shape) < 2:
            continue
        rank, said = shape[RANK_AT[end]], _said(config, name.removesuffix(f".{end}"))
        # For target_parameters, one tensor holds the matrices of all experts, so its rank is a multiple.
        if rank != said and not (config.get("target_parameters") and rank % said == 0):
            wrong.setdefault((rank, said), []).append(name)
    return [
        _told(f"rank {rank}, where the config says {cut(str(said))}", names) for (rank, said), names in wrong.items()
    ]


def _said(config: dict, module: str) -> int:
    """The rank of a module in a config: of the first pattern that matches the end of the module's name, as in PEFT."""
    patterns = config.get("rank_pattern") or {}
    own = (rank for end, rank in patterns.items() if re.match(rf"(.*\.)?({end})$", module))
    return next(own, config["r"])


def _virtual(adapter: Adapter) -> list[str]:
    said = adapter.config.get("num_virtual_tokens")
    shape = adapter.shapes.get("prompt_embeddings")
    if not is_rank(said) or not shape or shape[0] % said == 0:  # an encoder-decoder model has two sets of them
        return []
    return [f"prompt_embeddings has {shape[0]} virtual tokens, where the config says {said}"]


def _told(what: str, names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more} {'have' if more else 'has'} {what}" if names else ""
