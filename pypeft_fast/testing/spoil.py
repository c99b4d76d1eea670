"""Ways to make a kernel wrong that are the same for several ops: spoil(kernel, *arguments) -> wrong outputs."""

import torch


def zeros(function, *args):
    out = function(*args)
    return tuple(map(torch.zeros_like, out)) if isinstance(out, tuple) else torch.zeros_like(out)


def without(index):
    """The kernel on arguments of which one is zero: a forgotten term."""
    return lambda function, *args: function(*args[:index], torch.zeros_like(args[index]), *args[index + 1 :])


def unscaled(index):
    """The kernel on arguments of which one, a factor, is 1."""
    return lambda function, *args: function(*args[:index], torch.ones_like(args[index]), *args[index + 1 :])


def without_output(index):
    """The kernel with one of its outputs zero."""
    return lambda function, *args: tuple(t * (i != index) for i, t in enumerate(function(*args)))
