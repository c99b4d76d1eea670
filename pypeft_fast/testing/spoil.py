"""Mutants that several ops share: spoil(kernel, *arguments) -> wrong outputs."""

import torch


def zeros(function, *args):
    out = function(*args)
    return tuple(map(torch.zeros_like, out)) if isinstance(out, tuple) else torch.zeros_like(out)


def without(index):
    """The kernel with one argument set to zero: a missing term."""
    return lambda function, *args: function(*args[:index], torch.zeros_like(args[index]), *args[index + 1 :])


def unscaled(index):
    """The kernel with one argument, a factor, set to 1."""
    return lambda function, *args: function(*args[:index], torch.ones_like(args[index]), *args[index + 1 :])


def without_output(index):
    """The kernel with one output set to zero."""
    return lambda function, *args: tuple(t * (i != index) for i, t in enumerate(function(*args)))
