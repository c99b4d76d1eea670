"""Initial values of a LoRA adapter, by the names that PEFT gives them."""

import math
import re

import torch
from torch import nn

PISSA_FAST = re.compile(r"pissa_niter_(\d+)")


def check_init(how) -> None:
    """ValueError unless `how` is a known value of init_lora_weights."""
    if isinstance(how, bool) or how in ("orthogonal", "pissa", "olora"):
        return
    if isinstance(how, str) and (how.lower() == "gaussian" or PISSA_FAST.fullmatch(how)):
        return
    raise ValueError(
        f"init_lora_weights={how!r} is not supported; use True, False, 'gaussian', 'orthogonal', 'pissa', "
        "'pissa_niter_N' or 'olora'"
    )


def check_weight(how, rank, weight) -> None:
    """ValueError or TypeError unless an initialisation can make an adapter of this rank for this weight [N, K]."""
    if how == "orthogonal" and rank % 2:
        raise ValueError(f"init_lora_weights='orthogonal' needs an even rank, got r={rank}")
    if not isinstance(how, str) or not how.startswith(("pissa", "olora")):
        return
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"init_lora_weights={how!r} needs a float32, bfloat16 or float16 weight, got {weight.dtype}")
    if rank > min(weight.shape):
        raise ValueError(f"init_lora_weights={how!r} needs a rank of at most {min(weight.shape)}, got r={rank}")
    if weight.is_meta or not weight.isfinite().all():
        raise ValueError(f"init_lora_weights={how!r} needs a weight of finite values, not NaN, infinite or on meta")


@torch.no_grad()
def init_lora_(weight, lora_A, lora_B, how, scaling) -> None:
    """Fills lora_A [r, K] and lora_B [N, r] in place; `weight` is the frozen [N, K], changed by pissa and olora only.

    True: A uniform in +-1/sqrt(K), B zero. "gaussian": A normal with deviation 1/r, B zero. False: both uniform, as
    nn.Linear's weights are. "orthogonal": A and B of orthogonal row spaces, r even. "pissa" (arXiv:2404.02948) and
    "pissa_niter_N" (its fast form): the r leading singular directions; "olora" (arXiv:2406.01775): the first r
    columns of a QR factorisation. These two subtract scaling * B A from the weight, so the layer's output stays.

    Raises ValueError for an unknown `how` or a rank that it cannot make; with pissa and olora also for a weight that
    is not finite, and TypeError for one that is neither float32, bfloat16 nor float16.
    """
    check_init(how)
    rank = lora_A.shape[0]
    check_weight(how, rank, weight)
    if how is True or how is False:
        nn.init.kaiming_uniform_(lora_A, a=math.sqrt(5))
        if how is True:
            nn.init.zeros_(lora_B)
        else:
            nn.init.kaiming_uniform_(lora_B, a=math.sqrt(5))
    elif how == "orthogonal":
        basis, _ = torch.linalg.qr(torch.randn(rank, rank))
        lora_A.copy_((torch.randn(lora_A.shape[1], rank // 2) @ basis[0::2]).t() / 10)
        lora_B.copy_(torch.randn(rank // 2, lora_B.shape[0]).t() @ basis[1::2] / 10)
    elif how.lower() == "gaussian":
        nn.init.normal_(lora_A, std=1 / rank)
        nn.init.zeros_(lora_B)
    else:
        _from_weight(weight, lora_A, lora_B, how, scaling)


def _from_weight(weight, lora_A, lora_B, how, scaling):
    rank = lora_A.shape[0]
    wide = weight.float()
    if how == "olora":
        q, r = torch.linalg.qr(wide)
        A, B = r[:rank], q[:, :rank]
    else:
        fast = PISSA_FAST.fullmatch(how)
        if fast:
            u, s, v = torch.svd_lowrank(wide, rank, niter=int(fast[1]))
            vt = v.t()
        else:
            u, s, vt = torch.linalg.svd(wide, full_matrices=False)
        root = (s[:rank] / scaling).sqrt()
        A, B = root[:, None] * vt[:rank], u[:, :rank] * root
    lora_A.copy_(A)
    lora_B.copy_(B)
    weight.copy_(wide - scaling * (lora_B.float() @ lora_A.float()))
