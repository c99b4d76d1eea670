"""Linear layers over a batch whose rows belong to different adapters (PEFT's adapter_names).

One frozen product covers all rows; then each adapter's low-rank update is added to the rows of this adapter. PEFT does
the same, but searches the list of names once per adapter and copies the rows of an adapter three times. Here contiguous
rows of one adapter are not copied.
"""

import torch
import torch.nn.functional as F


def mixed_rows_linear(x, weight, bias, adapters):
    """y = x W^T + b, plus scaling * (x_i A^T) B^T for the rows i of each of the adapters; differentiable.

    x [n, .., K], weight [N, K], bias [N] or None. adapters: one tuple (rows, lora_A [r, K], lora_B [N, r], scaling) per
    adapter; rows are increasing indices along the first dimension of x, and no row occurs twice. The low-rank update is
    computed in the dtype of lora_A and lora_B. Returns y [n, .., N] in the dtype that nn.Linear returns.
    """
    y = F.linear(x, weight, bias)
    cast: dict[torch.dtype, torch.Tensor] = {}  # x is cast once per dtype, not once per adapter
    for rows, A, B, scaling in adapters:
        if A.dtype not in cast:
            cast[A.dtype] = x.to(A.dtype)
        first, end = rows[0], rows[-1] + 1
        if end - first == len(rows):
            update = F.linear(F.linear(cast[A.dtype][first:end], A), B) * scaling
            y[first:end].add_(update.to(y.dtype))
        else:
            index = torch.tensor(rows, device=x.device)
            update = F.linear(F.linear(cast[A.dtype].index_select(0, index), A), B) * scaling
            y.index_add_(0, index, update.to(y.dtype))
    return y


def mixed_rows_scale(x, rows, factors):
    """x with each row multiplied by its adapter's factors: rows {adapter: indices}, factors {adapter: [K]}.

    Rows of an adapter without factors are not changed. x [n, .., K]; the result has x's dtype.
    """
    scale = x.new_ones(x.shape[0], x.shape[-1], dtype=torch.promote_types(x.dtype, torch.float32))
    for name, indices in rows.items():
        if name in factors:
            scale[indices] = factors[name].to(scale.dtype)
    return (x * scale.view(x.shape[0], *[1] * (x.dim() - 2), x.shape[-1])).to(x.dtype)
