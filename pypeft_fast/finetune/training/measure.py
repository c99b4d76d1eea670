"""What the examples measure of a training step: its seconds, and the bytes that autograd keeps for backward."""

import contextlib
import time

import torch


@contextlib.contextmanager
def counting_saved_bytes(model):
    """Yields a list that gets the bytes autograd keeps for the backward pass, one number when the block ends.

    Memory that several saved tensors share counts once; the model's parameters do not count. What is computed inside
    the block cannot be differentiated: nothing stays saved.
    """
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage  # held, so that no address is used again while counting

    total: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing):
        yield total
    total.append(sum(storage.nbytes() for storage in kept.values()))


def one_step(model, optimizer, batch) -> float:
    """Seconds of one optimizer step: forward, backward, update."""
    start = time.perf_counter()
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start
