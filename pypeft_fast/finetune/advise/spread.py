"""A ratio of two sums and its standard error."""

import math
from collections.abc import Sequence


def ratio(parts: Sequence[float], wholes: Sequence[float]) -> tuple[float, float | None]:
    """(R, error) of n pairs (p, w) that were drawn independently: R = sum(p) / sum(w) and its standard error

        error = sqrt(n / (n - 1) * sum((p - R w)^2)) / sum(w),

    None for a single pair. The pairs are, for example, the loss of each held-out example and its number of tokens: the
    tokens of one example depend on each other, so an error over tokens would be too small.

    Source: W. G. Cochran, Sampling Techniques, 3rd edition, chapter 6, without the correction for a finite population.
    """
    total = math.fsum(wholes)
    value = math.fsum(parts) / total
    count = len(parts)
    if count < 2:
        return value, None
    squares = math.fsum((p - value * w) ** 2 for p, w in zip(parts, wholes, strict=True))
    return value, math.sqrt(count / (count - 1) * squares) / total
