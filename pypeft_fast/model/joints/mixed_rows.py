"""A batch whose rows belong to different IA3 adapters: the factors of each row, in plain PyTorch."""

import torch


def mixed_rows_scale(x, rows, factors):
    """x with each row multiplied by its adapter's factors: rows {adapter: indices}, factors {adapter: [K]}.

    Rows of an adapter without factors are not changed. x [n, .., K]; the result has x's dtype.
    """
    scale = x.new_ones(x.shape[0], x.shape[-1], dtype=torch.promote_types(x.dtype, torch.float32))
    for name, indices in rows.items():
        if name in factors:
            scale[indices] = factors[name].to(scale.dtype)
    return (x * scale.view(x.shape[0], *[1] * (x.dim() - 2), x.shape[-1])).to(x.dtype)
