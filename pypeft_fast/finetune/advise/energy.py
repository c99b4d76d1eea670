"""The gradient energy of each layer's LoRA adapter before training, on a few batches of the user's data."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import UserError
from ..plan.skeleton import blocks_of

A, B = ".lora_A.", ".lora_B."
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class LayerEnergy:
    """One adapted layer. name: as in the base model. block: its number, None outside the blocks. module: its name in a
    block, such as mlp.down_proj. parameters: r (K + N). energies: ||dB||^2 of each batch."""

    name: str
    block: int | None
    module: str
    parameters: int
    energies: tuple[float, ...]

    @property
    def energy(self) -> float:
        """The mean over the batches."""
        return math.fsum(self.energies) / len(self.energies)


def gradient_energies(model: nn.Module, depth: int, batches: Iterable[dict], told=None) -> list[LayerEnergy]:
    """The squared norm of dB = dLoss/dB of each LoRA layer, batch by batch; the loss is the mean over target tokens.

    With B = 0, as PEFT initialises B, the model computes what the base model computes, dA is 0, and

        dB = scaling * dY^T (x A^T) = scaling * dW A^T   [N, r],

    where dW [N, K] is the gradient that the frozen weight would have. For PEFT's A, uniform with variance 1 / (3 K),
    the expectation of ||dB||^2 is scaling^2 * r / (3 K) * ||dW||_F^2.

    model: a PeftModel with LoRA adapters, of a base model with `depth` blocks. told: is called with the number of
    batches that are done. UserError if a loss is NaN or infinite, or if all gradients are zero.
    """
    trained = {name: its for name, its in model.named_parameters() if its.requires_grad}
    found: dict[str, list[float]] = {name: [] for name in trained if B in name}
    for number, batch in enumerate(batches, 1):
        loss = model(**{key: value.to(model.device) for key, value in batch.items()}).loss
        if not math.isfinite(float(loss.detach())):
            raise UserError(
                f"the loss of batch {number} is {float(loss.detach())} before any training: the weights of `model` are "
                "damaged, or their values exceed `dtype`; get the model again, or take another `dtype`"
            )
        loss.backward()
        for name in found:
            gradient = trained[name].grad
            found[name].append(0.0 if gradient is None else float(gradient.float().square().sum()))
        for parameter in trained.values():
            parameter.grad = None
        if told is not None:
            told(number)
    if not any(value > 0 for values in found.values() for value in values):
        raise UserError("all gradients of the adapters are zero: no layer of `model` changes the loss of this `data`")
    place = _places(model, depth)
    layers = []
    for name, energies in found.items():
        short = name.partition(B)[0].removeprefix(PEFT_PREFIX)
        parameters = trained[name].numel() + trained[name.replace(B, A)].numel()
        layers.append(LayerEnergy(short, *place(short), parameters, tuple(energies)))
    return layers


def _places(model: nn.Module, depth: int) -> Callable[[str], tuple[int | None, str]]:
    """A function from a layer's name to the number of its block and its name there."""
    blocks = blocks_of(model, depth)
    prefix = next(name for name, its in model.named_modules() if its is blocks).removeprefix(PEFT_PREFIX) + "."

    def place(name: str) -> tuple[int | None, str]:
        if not name.startswith(prefix):
            return None, name
        number, _, inside = name.removeprefix(prefix).partition(".")
        return int(number), inside

    return place


def batches_of(encoded: list, collator, size: int, wanted: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Up to `wanted` whole batches of different examples, in an order that follows from the seed.

    UserError if there are fewer examples than one batch has.
    """
    count = min(wanted, len(encoded) // size)
    if count == 0:
        raise UserError(
            f"`data` has {len(encoded)} examples to train on, fewer than `batch_size` {size}; give more data, or a "
            "smaller `batch_size`"
        )
    order = torch.randperm(len(encoded), generator=torch.Generator().manual_seed(seed)).tolist()
    return [collator([encoded[i] for i in order[start : start + size]]) for start in range(0, count * size, size)]
