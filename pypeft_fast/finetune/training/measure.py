"""Measures a training step, for the examples: seconds, and the bytes that autograd saves for backward."""

import contextlib
import time

import torch


@contextlib.contextmanager
def counting_saved_bytes(model):
    """Yields a list; at the end of the block the list gets the number of bytes that autograd saved for backward.

    Memory that several saved tensors share counts once. The model's parameters do not count. Results of the block
    cannot be differentiated, since the saved tensors are not kept.
    """
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage  # a reference, so that the allocator does not reuse the address

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
