"""The shape of a layer's output from an op's rows."""

import torch


def shaped(rows, x):
    """rows [M, N] as [.., N], with the leading dimensions of x [.., K].

    In a Function the view is detached, since autograd refuses in-place changes of a Function's output that is a view.
    The result keeps the version counter of `rows`, with which selective checkpointing detects a changed tensor.
    Outside of a Function, where the op itself is differentiated, the view stays attached and carries the gradient.
    """
    if x.dim() == 2:
        return rows
    out = rows.view(*x.shape[:-1], rows.shape[1])
    return out if torch.is_grad_enabled() else out.detach()
