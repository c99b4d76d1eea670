"""An op's rows as a layer's output."""


def shaped(rows, x):
    """rows [M, N] as [.., N], with the leading dimensions of x [.., K].

    Detached, it is no view to autograd, which else refuses to change a Function's output in place; and it keeps the
    version counter of `rows`, by which selective checkpointing sees that a tensor it has kept was changed.
    """
    return rows if x.dim() == 2 else rows.view(*x.shape[:-1], rows.shape[1]).detach()
