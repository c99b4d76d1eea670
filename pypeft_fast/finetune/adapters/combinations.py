"""The ways in which adapters are combined to one, and which adapters each way takes. Imports no PyTorch.

PEFT's add_weighted_adapter computes them. With the updates D_i = scaling_i B_i A_i and the weights w_i:

- cat: A and B are the concatenations, so that B A = sum w_i D_i exactly, with the sum of the ranks.
- svd: the best approximation of sum w_i D_i of a given rank; *_svd approximates what the method gives for the D_i.
- linear: A = sum sqrt(w_i scaling_i) A_i, and B likewise, so that B A also has products of one adapter's B and
  another's A. The other methods do the same with values that they have pruned: ties (Yadav et al. 2023,
  arXiv:2306.01708), dare_* (Yu et al. 2023, arXiv:2311.03099), magnitude_prune.
"""

import math
from pathlib import Path

from ..errors import UserError
from ..text import quoted
from .files import Adapter, read_adapter

OF_ONE_RANK = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
OF_ANY_RANK = ("cat", "svd", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd")
COMBINATIONS = OF_ANY_RANK + OF_ONE_RANK
# Fields of a config that say in which layers an adapter is; PEFT takes them from the first adapter alone.
WHERE = ("layers_to_transform", "layers_pattern", "exclude_modules")


def is_pruned(method: str) -> bool:
    """Whether a method prunes the values to a density."""
    return method.startswith(("ties", "dare", "magnitude_prune"))


def read_combined(folders: list[Path], weights: list[float], method: str) -> list[Adapter]:
    """The adapters in the folders.

    UserError if a folder has no whole adapter, or if the method cannot combine the adapters with these weights.
    """
    adapters = [read_adapter(folder) for folder in folders]
    named = list(zip(folders, adapters, strict=True))
    kind = adapters[0].config["peft_type"]
    for folder, its in named:
        if its.config["peft_type"] not in ("LORA", "IA3"):
            raise UserError(
                f"{folder} is of the method {quoted(its.config['peft_type'])}; combined are adapters of LoRA, or of IA3"
            )
        if its.config["peft_type"] != kind:
            raise UserError(
                f"{folders[0]} is of the method {kind} and {folder} of {its.config['peft_type']}; give adapters of one "
                "method"
            )
    if kind == "IA3":
        _check_ia3(named, weights, method)
    else:
        _check_ranks(named, method)
        _check_places(named)
    return adapters


def _check_ia3(named, weights: list[float], method: str) -> None:
    if method != "linear":
        raise UserError(f"`method` {method} is for LoRA, and the adapters are of IA3; give linear")
    first, *others = (sorted(its.shapes) for _, its in named)
    for (folder, _), names in zip(named[1:], others, strict=True):
        if names != first:
            raise UserError(
                f"{named[0][0]} and {folder} scale different layers, where a weighted sum of IA3's factors has no "
                "meaning; give adapters with the same target modules"
            )
    total = math.fsum(weights)
    if abs(total - 1) >= 1e-6:
        raise UserError(
            f"the sum of `weights` is {total:g} and must be 1 for adapters of IA3: the factors of IA3 multiply, and a "
            "factor of 1 changes nothing"
        )


def _check_ranks(named, method: str) -> None:
    if method not in OF_ONE_RANK:
        return
    remedy = "; cat and svd combine any ranks"
    ranks = {its.config.get("r"): folder for folder, its in named}
    if len(ranks) > 1:
        (rank, folder), (other, another), *_ = ranks.items()
        raise UserError(
            f"`method` {method} needs adapters of one rank, and {folder} has r = {rank}, {another} r = {other}{remedy}"
        )
    for folder, its in named:
        if its.config.get("rank_pattern"):
            raise UserError(f"`method` {method} needs one rank in all layers, and {folder} has a rank_pattern{remedy}")


def _check_places(named) -> None:
    (first, its), *others = named
    for folder, other in others:
        for field in WHERE:
            if its.config.get(field) != other.config.get(field):
                raise UserError(
                    f"{field} is {quoted(its.config.get(field))} in {first} and {quoted(other.config.get(field))} in "
                    f"{folder}; give adapters that agree in it"
                )
        kinds = [isinstance(config.get("target_modules"), str) for config in (its.config, other.config)]
        if kinds[0] != kinds[1]:
            raise UserError(
                f"target_modules is an expression in {(first, folder)[kinds[1]]} and a list in "
                f"{(first, folder)[kinds[0]]}; give adapters that have the same kind"
            )
