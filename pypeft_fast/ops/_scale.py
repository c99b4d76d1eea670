"""Scaling by a vector whose dtype may be wider."""


def scaled(t, factor):
    """t * factor in t's dtype, multiplied in float32 or wider and rounded once; no float32 copy of t on a GPU."""
    return t * factor if factor.dtype == t.dtype else t.clone().mul_(factor)
