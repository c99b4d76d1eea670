"""Compares two adapters: their configs, and the updates that they add to the frozen weights."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..errors import UserError
from ..text import quoted
from .files import WEIGHTS, Adapter, read_adapter

# Fields of a config that say where and with which versions it was written.
UNIMPORTANT = ("peft_version", "inference_mode", "auto_mapping", "revision")


@dataclass(frozen=True)
class Distance:
    """Of all layers with one name: norms of both updates, and the norm of their difference over the first norm."""

    first: float
    second: float
    relative: float
    layers: int


def config_differences(first: Adapter, second: Adapter) -> dict[str, tuple]:
    """{field: (its value in the first config, in the second)} of the fields that differ."""
    fields = sorted((set(first.config) | set(second.config)) - set(UNIMPORTANT))
    pairs = {name: (_plain(first.config.get(name)), _plain(second.config.get(name))) for name in fields}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _plain(value):
    return sorted(value, key=str) if isinstance(value, list) else value


def update_distances(first: Path, second: Path) -> dict[str, Distance]:
    """{last part of the layers' names: Distance} of two LoRA adapters; a layer that one of them lacks has no update.

    The update of a layer is scaling * B A. The norm of s_1 B_1 A_1 - s_2 B_2 A_2 = L R, with L = [s_1 B_1, -s_2 B_2]
    [N, r_1 + r_2] and R = [A_1; A_2], is that of the product of the triangles of L and R^T in their QR
    decompositions, so that no N x K matrix is formed. For DoRA B A is compared, without the magnitudes.

    UserError for another method, or if the shapes of a layer differ in N or K.
    """
    both = [_updates(folder) for folder in (first, second)]
    squares: dict[str, list[float]] = {}
    for layer in sorted({*both[0], *both[1]}):
        halves = [its.get(layer) for its in both]
        left, right = (None if half is None else half for half in halves)
        if left and right and (left[0].shape[0], left[1].shape[1]) != (right[0].shape[0], right[1].shape[1]):
            raise UserError(
                f"{layer} is {left[0].shape[0]} x {left[1].shape[1]} in {first} and {right[0].shape[0]} x "
                f"{right[1].shape[1]} in {second}: the adapters belong to different base models"
            )
        sums = squares.setdefault(layer.rpartition(".")[2], [0.0, 0.0, 0.0, 0])
        sums[0] += _norm(left) ** 2
        sums[1] += _norm(right) ** 2
        sums[2] += _norm(_minus(left, right)) ** 2
        sums[3] += 1
    return {name: _distance(*sums) for name, sums in squares.items()}


def _distance(first: float, second: float, difference: float, layers: int) -> Distance:
    relative = math.sqrt(difference / first) if first else math.inf if difference else 0.0
    return Distance(math.sqrt(first), math.sqrt(second), relative, layers)


def _minus(left, right):
    if left is None or right is None:
        return left or right
    return torch.cat([left[0], -right[0]], 1), torch.cat([left[1], right[1]])


def _norm(pair) -> float:
    """The Frobenius norm of B A for B [N, r] and A [r, K]; 0 for None."""
    if pair is None:
        return 0.0
    triangles = [torch.linalg.qr(matrix, mode="r").R for matrix in (pair[0], pair[1].t())]
    return float(torch.linalg.matrix_norm(triangles[0] @ triangles[1].t()))


def _updates(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """{layer: (scaling * B, A)} in float64."""
    adapter = read_adapter(folder)
    if adapter.config["peft_type"] != "LORA":
        raise UserError(f"{folder} is of the method {quoted(adapter.config['peft_type'])}; compared are LoRA and DoRA")
    tensors, found = load_file(folder / WEIGHTS), {}
    for name in tensors:
        layer = name.removesuffix(".lora_A.weight")
        if layer != name:
            A, B = tensors[name].double(), tensors[f"{layer}.lora_B.weight"].double()
            found[layer.removeprefix("base_model.model.")] = scaling(adapter.config, layer, A.shape[0]) * B, A
    return found


def scaling(config: dict, layer: str, rank: int) -> float:
    """alpha / r of a layer, or alpha / sqrt(r) with rsLoRA; alpha_pattern may give the layer an alpha of its own."""
    patterns = config.get("alpha_pattern") or {}
    own = (alpha for end, alpha in patterns.items() if re.match(rf"(.*\.)?({end})$", layer))
    alpha = next(own, config.get("lora_alpha") or 8)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
