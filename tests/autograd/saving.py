"""The tensors that a function saves for its backward pass."""

import contextlib

import torch

import pypeft_fast as pf


@contextlib.contextmanager
def keeping():
    """Yields a list that receives the tensors which autograd saves inside the block."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        yield kept


def saved_and_ran(function, grad=True):
    """The tensors saved by function(), and the names of the ops that ran in it and in the backward of its sum."""
    with keeping() as kept, torch.set_grad_enabled(grad), pf.recording() as ran:
        y = function()
        if y.requires_grad:
            y.sum().backward()
    return kept, [op for op, _ in ran]
