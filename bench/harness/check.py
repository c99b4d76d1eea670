"""Checks, before timing, that a provider's results agree with the formula in float64 with the same mask."""

import torch
import torch.nn.functional as F

from pypeft_fast.ops import philox

from .cases import SCALING

SEED = 1


class WrongResult(Exception):
    """A provider that must not be timed."""


def in_float64(tensor):
    return tensor.detach().double().requires_grad_()


def keep(case, mask):
    """The dropout factors [M, K], 0 or 1 / (1 - p), of the first step after torch.manual_seed(SEED)."""
    torch.manual_seed(SEED)
    if mask == "torch" and case.p > 0:
        return F.dropout(torch.ones(case.M, case.K, dtype=case.adapter), case.p).double()
    if mask == "philox" and case.p > 0:
        seed = philox.draw_seed(torch.get_default_device(), None)
        bits = philox.packed_mask(case.M, case.K, case.p, seed)
        return philox.dropped(torch.ones(case.M, case.K, dtype=torch.float64), bits, case.p)
    return torch.ones(case.M, case.K, dtype=torch.float64)


def formula(case, x, weight, adapters, dY, mask):
    """y, dX and the adapter's gradients of the plain formula, in the operands' dtypes."""
    y = F.linear(x, weight)
    if case.kind == "ia3" and adapters:
        y = y * adapters[0]
    elif adapters:
        y = y + SCALING * ((x * mask) @ adapters[0].t() @ adapters[1].t())
    return y.detach(), *torch.autograd.grad(y, (x, *adapters), dY)


def check(name, provider, case, operands):
    """Raises WrongResult if an error exceeds twice eager PyTorch's in x's dtype, plus one ulp of the largest value.

    A compiled provider draws its mask from another stream, so the caller checks it on a case without dropout.
    """
    mask = keep(case, provider.mask)
    adapters = () if name == "frozen" else operands.adapters
    truth = formula(
        case,
        in_float64(operands.x),
        operands.weight.double(),
        [in_float64(a) for a in adapters],
        operands.dY.double(),
        mask,
    )
    narrow = [a.detach().to(case.dtype).requires_grad_() for a in adapters]
    x = operands.x.detach().requires_grad_()
    eager = formula(case, x, operands.weight, narrow, operands.dY, mask.to(case.dtype))
    step = provider.build(case, operands)  # before manual_seed, since building a layer draws random numbers
    torch.manual_seed(SEED)
    results = step()
    if len(results) != len(truth):
        raise WrongResult(f"{name}, {case}: {len(results)} results, not {len(truth)}")
    for label, own, plain, expected in zip(("y", "dX", "dA", "dB"), results, eager, truth, strict=False):
        error = (own.double() - expected).abs().max().item()
        ulp = torch.finfo(case.dtype).eps * expected.abs().max().item()
        bound = 2 * (plain.double() - expected).abs().max().item() + ulp
        if not error <= bound:
            raise WrongResult(f"{name}, {case}: {label} is off by {error:.3g}, more than {bound:.3g}")
