"""The bytes of the tensors that live during a training step, counted from shapes: no tensor has memory."""

import contextlib
import weakref
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .skeleton import blocks_of

DEPTH = 2  # blocks of the simulated model
MAPPED = 32 * 1024**2  # larger tensors are mapped one by one by glibc, and given back when they are freed


@dataclass(frozen=True)
class Activations:
    """block: bytes that one block keeps for backward. peak: the most bytes of a step of a model of DEPTH blocks. heap:
    what the C library's heap adds to the peak, since freed tensors below MAPPED bytes stay in the process. small: the
    most bytes of these tensors. small_block: those that one block keeps."""

    block: int
    peak: int
    heap: int
    small: int = 0
    small_block: int = 0

    def at(self, depth: int) -> int:
        """The most bytes of a step of a model of `depth` blocks: the step frees a block only after its backward."""
        return self.peak + (depth - DEPTH) * self.block

    def small_at(self, depth: int) -> int:
        """The most bytes of tensors in the C library's heap, in a step of a model of `depth` blocks."""
        return self.small + (depth - DEPTH) * self.small_block


class Live(TorchDispatchMode):
    """Counts the bytes of the storages that exist, from their first appearance in a result to their end."""

    def __init__(self, known):
        """known: tensors that do not count."""
        super().__init__()
        self.now = self.peak = 0
        self.heap = [0, 0]  # live bytes and the most live bytes of the tensors below MAPPED
        self.mapped = [0, 0]  # those of the larger tensors
        self.seen = weakref.WeakSet(t.untyped_storage() for t in known)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True  # such as: is the whole mask true?
        results = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self.seen:
                storage = tensor.untyped_storage()
                self.seen.add(storage)
                self._add(storage.nbytes(), 1)
                weakref.finalize(storage, self._add, storage.nbytes(), -1)
        return results

    def _add(self, size: int, sign: int) -> None:
        part = self.heap if size < MAPPED else self.mapped
        part[0] += sign * size
        part[1] = max(part)
        self.now += sign * size
        self.peak = max(self.peak, self.now)


def activations(model, shape: tuple[int, int], causal: bool, checkpointing: bool, adapters=()) -> Activations:
    """The activations of a training step of a model of DEPTH blocks with an adapter, made on the meta device.

    shape: rows and tokens of the batch. adapters: their names; several share the rows in equal parts, each with a loss
    of its own. The gradients of the adapter do not count: each is dropped when it is there.
    """
    if checkpointing:
        # Backward runs without the function mode of forward, so the recomputation gets one of its own.
        contexts = {"context_fn": lambda: (contextlib.nullcontext(), CpuAttention())}
        model.gradient_checkpointing_enable({"use_reentrant": False, **contexts})
    model.train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
    tokens = torch.empty(shape, dtype=torch.long, device="meta")
    live, marks = Live([*model.parameters(), *model.buffers()]), []
    block = blocks_of(model, DEPTH)[-1]
    before = block.register_forward_pre_hook(lambda *_: marks.append((live.now, live.heap[0])))
    after = block.register_forward_hook(lambda *_: marks.append((live.now, live.heap[0])))
    with live, CpuAttention():
        loss_of(model, tokens, causal, adapters).backward()
    before.remove()
    after.remove()
    block, small_block = (after - before for before, after in zip(*marks[:2], strict=True))
    heap = live.heap[1] + live.mapped[1] - live.peak
    return Activations(block, live.peak, heap, live.heap[1], small_block)


def loss_of(model, tokens: torch.Tensor, causal: bool, adapters=()) -> torch.Tensor:
    """The loss of a decoder on the tokens, of several adapters the sum; for an encoder, the mean of its output."""
    if not causal:
        return model(input_ids=tokens)[0].float().mean()
    if len(adapters) < 2:
        return model(input_ids=tokens, labels=tokens).loss
    rows = [name for name in adapters for _ in range(len(tokens) // len(adapters))]
    logits, its = model(input_ids=tokens, adapter_names=rows).logits, model.get_base_model().loss_function
    parts = zip(logits.chunk(len(adapters)), tokens.chunk(len(adapters)), strict=True)
    return torch.stack([its(logits=part, labels=own, vocab_size=part.shape[-1]) for part, own in parts]).sum()


def _drop_gradient(parameter) -> None:
    parameter.grad = None


class CpuAttention(TorchFunctionMode):
    """Takes SDPA of meta tensors by the flash attention of a CPU, which keeps its inputs, its result and one number a
    row and head, as a GPU's does. PyTorch would take the form that keeps all scores, as it does on a CPU with dropout
    of the scores, such as a BERT's."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is not scaled_dot_product_attention or kwargs.get("dropout_p"):
            return function(*args, **kwargs)
        return _flash(*args, **kwargs)


def _flash(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return flash(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
