"""The bytes of the tensors that live during a training step, counted from shapes: no tensor has memory."""

import weakref
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .skeleton import blocks_of

DEPTH = 2  # blocks of the simulated model


@dataclass(frozen=True)
class Activations:
    """block: bytes that one block keeps for backward. peak: the most bytes of a step of a model of DEPTH blocks."""

    block: int
    peak: int

    def at(self, depth: int) -> int:
        """The most bytes of a step of a model of `depth` blocks: the step frees a block only after its backward."""
        return self.peak + (depth - DEPTH) * self.block


class Live(TorchDispatchMode):
    """Counts the bytes of the storages that exist, from their first appearance in a result to their end."""

    def __init__(self, known):
        """known: tensors that do not count."""
        super().__init__()
        self.now = self.peak = 0
        self.seen = weakref.WeakSet(t.untyped_storage() for t in known)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self.seen:
                storage = tensor.untyped_storage()
                self.seen.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage.nbytes())
        return results

    def _gone(self, size: int) -> None:
        self.now -= size


def activations(model, shape: tuple[int, int], vocabulary: int, causal: bool, checkpointing: bool) -> Activations:
    """The activations of a training step of a model of DEPTH blocks with an adapter, made on the meta device.

    shape: rows and tokens of the batch. The gradients of the adapter do not count: each is dropped when it is there.
    """
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    with FakeTensorMode():
        _place(model)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_drop_gradient)
        tokens = torch.randint(0, vocabulary, shape)
        live, marks = Live([*model.parameters(), *model.buffers()]), []
        block = blocks_of(model, DEPTH)[-1]
        before = block.register_forward_pre_hook(lambda *_: marks.append(live.now))
        after = block.register_forward_hook(lambda *_: marks.append(live.now))
        with live:
            loss_of(model, tokens, causal).backward()
        before.remove()
        after.remove()
    return Activations(marks[1] - marks[0], live.peak)


def loss_of(model, tokens: torch.Tensor, causal: bool) -> torch.Tensor:
    """The loss of a decoder on the tokens; for an encoder, the mean of its output."""
    mask = torch.ones_like(tokens)
    if causal:
        return model(input_ids=tokens, attention_mask=mask, labels=tokens).loss
    return model(input_ids=tokens, attention_mask=mask)[0].float().mean()


def _drop_gradient(parameter) -> None:
    parameter.grad = None


def _place(model: nn.Module) -> None:
    """Replaces the parameters and buffers on the meta device by fake tensors of the CPU, tied ones by one tensor.

    SDPA on the meta device would take its slowest form, with all scores as a tensor.
    """
    made: dict[int, torch.Tensor] = {}

    def placed(tensor):
        if tensor is None or not tensor.is_meta:
            return tensor
        if id(tensor) not in made:
            fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
            made[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
        return made[id(tensor)]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                tensors[name] = placed(tensor)
