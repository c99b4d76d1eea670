"""An op's rows as a layer's output."""

import torch


def shaped(rows, x):
    """rows [M, N] as [.., N], with the leading dimensions of x [.., K].

    Detached, it is no view to autograd, which else refuses to change a Function's output in place; and it keeps the
    version counter of `rows`, by which selective checkpointing sees that a tensor it has kept was changed. Where the
    op itself is differentiated, outside of a Function, the view carries its gradient.
    """
    if x.dim() == 2:
        return rows
    out = rows.view(*x.shape[:-1], rows.shape[1])
    return out if torch.is_grad_enabled() else out.detach()
