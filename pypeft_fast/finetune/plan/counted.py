"""Counts an adapter's tensors: PEFT makes the adapter on the meta device, and names its tensors and their shapes."""

import json
import math

import peft
from torch import nn

import pypeft_fast

from ..adapters.contradictions import RANK_AT
from ..adapters.methods import method_config
from ..errors import as_user_error
from ..library_errors import LIBRARY_ERRORS
from .candidates import Candidate


def with_adapter(base: nn.Module, candidate: Candidate, task: str) -> nn.Module:
    """The base model, on any device, with the candidate's adapter. UserError if PEFT refuses the candidate."""
    config = method_config(pypeft_fast, candidate.settings(""), task)
    with as_user_error(f"{candidate.method} on {candidate.targets} cannot be made", LIBRARY_ERRORS):
        return pypeft_fast.get_peft_model(base, config)


def tensors_of(model) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the tensors in an adapter's file, as PEFT would write it."""
    return {name: tuple(its.shape) for name, its in peft.get_peft_model_state_dict(model).items()}


def at_rank(shapes: dict[str, tuple[int, ...]], rank: int | None) -> dict[str, tuple[int, ...]]:
    """The shapes of the same adapter with another rank; None: the method has no rank."""
    if rank is None:
        return shapes
    found = {}
    for name, shape in shapes.items():
        end = next((end for end in RANK_AT if name.endswith(f".{end}")), None)
        found[name] = tuple(rank if i == RANK_AT.get(end) else size for i, size in enumerate(shape))
    return found


def parameters(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes.values()))


def file_bytes(shapes: dict[str, tuple[int, ...]]) -> int:
    """The size of adapter_model.safetensors with these tensors in float32.

    The file has the header's length in 8 bytes, the header in JSON, padded to a multiple of 8 bytes, and the data.
    Source: https://github.com/huggingface/safetensors#format
    """
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(shapes):
        end = at + 4 * math.prod(shapes[name])
        header[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [at, end]}
        at = end
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + length + -length % 8 + at
