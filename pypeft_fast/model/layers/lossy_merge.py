"""lossy_merge(): allows merging into a quantised weight even if rounding loses most of the update."""

import contextlib
import contextvars
from collections.abc import Iterator

from ...frozen import merging

_shares = contextvars.ContextVar("pypeft_fast.lossy_merge", default=None)


@contextlib.contextmanager
def lossy_merge() -> Iterator[list[float]]:
    """During the block adapters are merged into a quantised base even if rounding loses most of the update.

        with pf.lossy_merge() as shares:
            model.merge_adapter()

    Outside of the block a layer raises RuntimeError if less than 0.9 of the update is left after rounding to the
    weight's format. The list gets one number per layer: <R, D> / <D, D> of the update D and the update after rounding,
    R.
    """
    shares: list[float] = []
    token = _shares.set(shares)
    try:
        yield shares
    finally:
        _shares.reset(token)


def requantized(frozen, merged):
    """merged [N, K] in the format of frozen.

    ValueError for NaN or infinity, which the format cannot store. RuntimeError if too little of the update is left.
    """
    if not merged.isfinite().all():
        raise ValueError("NaNs detected in the merged weights: an adapter is broken, and a quantised weight has no NaN")
    new, share = merging.requantized(frozen, merged)
    shares = _shares.get()
    merging.check_share(share, force=shares is not None)
    if shares is not None:
        shares.append(share)
    return new
