"""Records the addresses that Triton kernels load and store in Triton's interpreter, and compares them with the
kernel's arguments.

    with traced() as launches:
        op(...)

A kernel may access only elements of its tensor arguments, and not the gaps between strided rows. The elements of an
argument that is a tuple are arguments with names such as "db_ptrs[0]".
"""

import contextlib
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from unittest import mock

import numpy as np
import torch
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor


@dataclass
class Launch:
    kernel: str
    programs: int
    # {argument: bytes}. An element counts once for each instruction that a program runs, also if several lanes load it.
    loaded: Counter = field(default_factory=Counter)
    stored: Counter = field(default_factory=Counter)
    # {argument: bytes of the distinct elements that each line of the kernel loads}. One pass over a matrix counts once,
    # for any number of programs. Two lines that load the same matrix count as two passes.
    once: Counter = field(default_factory=Counter)
    outside: list[str] = field(default_factory=list)  # accesses outside of all arguments


class _Argument:
    def __init__(self, name, tensor):
        self.name, self.size = name, tensor.element_size()
        offsets = np.zeros(1 if tensor.numel() else 0, np.int64)
        for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
            offsets = (offsets[:, None] + np.arange(length)[None, :] * stride).ravel() if stride else offsets
        self.addresses = np.unique(offsets * self.size + tensor.data_ptr())
        self.seen = defaultdict(lambda: np.zeros(len(self.addresses), bool))  # {line: elements that this line loads}

    def at(self, pointers):
        """(indices of these addresses in self.addresses, whether each address is an element)."""
        if not len(self.addresses):
            return np.zeros(len(pointers), np.int64), np.zeros(len(pointers), bool)
        places = np.searchsorted(self.addresses, pointers).clip(max=len(self.addresses) - 1)
        return places, self.addresses[places] == pointers


def _line(launch):
    """The line of the current access in the kernel, and the lines of the calls between kernel and access."""
    frame, lines = sys._getframe(2), []
    while frame.f_code is not launch.__code__:
        lines.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return tuple(lines)


def tensors_of(names, args, kwargs):
    """{name: tensor} of a launch's arguments; of a descriptor its tensor."""
    found = {}
    for name, value in (dict(zip(names, args, strict=False)) | kwargs).items():
        parts = {f"{name}[{i}]": part for i, part in enumerate(value)} if type(value) is tuple else {name: value}
        found |= {n: v.base if isinstance(v, TensorDescriptor) else v for n, v in parts.items()}
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


@contextlib.contextmanager
def traced(beside=None):
    """Yields a list that gets one Launch for every Triton kernel that is interpreted in the block.

    beside: {name: tensor} of tensors that are no arguments, whose addresses the kernels load.
    """
    launches: list[Launch] = []
    arguments: list[_Argument] = []
    call = interpreter.GridExecutor.__call__
    load, store = interpreter.InterpreterBuilder.create_masked_load, interpreter.InterpreterBuilder.create_masked_store
    rmw = interpreter.InterpreterBuilder.create_atomic_rmw

    def launch(executor, *args, **kwargs):
        tensors = (beside or {}) | tensors_of(executor.arg_names, args, kwargs)
        arguments[:] = [_Argument(name, tensor) for name, tensor in tensors.items()]
        launches.append(Launch(executor.fn.__name__, int(np.prod(executor.grid))))
        call(executor, *args, **kwargs)
        for argument in arguments:
            seen = sum(int(elements.sum()) for elements in argument.seen.values())
            launches[-1].once[argument.name] = seen * argument.size

    def note(kind, pointers, mask):
        pointers, mask = np.asarray(pointers), np.asarray(mask)  # Triton 3.7's descriptors pass memoryviews
        pointers = np.unique(np.broadcast_to(pointers, mask.shape)[mask.astype(bool)].astype(np.int64))
        line = _line(launch)
        for argument in arguments:
            places, inside = argument.at(pointers)
            getattr(launches[-1], kind)[argument.name] += int(inside.sum()) * argument.size
            if kind == "loaded":
                argument.seen[line][places[inside]] = True
            pointers = pointers[~inside]
        if len(pointers):
            launches[-1].outside.append(f"{kind} {len(pointers)} elements outside every argument")

    def traced_load(builder, pointers, mask, *rest, **named):
        note("loaded", pointers.data, mask.data)
        return load(builder, pointers, mask, *rest, **named)

    def traced_store(builder, pointers, value, mask, *rest, **named):
        note("stored", pointers.data, mask.data)
        return store(builder, pointers, value, mask, *rest, **named)

    def traced_rmw(builder, op, pointers, value, mask, *rest):
        note("stored", pointers.data, mask.data)
        return rmw(builder, op, pointers, value, mask, *rest)

    with (
        mock.patch.object(interpreter.GridExecutor, "__call__", launch),
        mock.patch.object(interpreter.InterpreterBuilder, "create_masked_load", traced_load),
        mock.patch.object(interpreter.InterpreterBuilder, "create_masked_store", traced_store),
        mock.patch.object(interpreter.InterpreterBuilder, "create_atomic_rmw", traced_rmw),
    ):
        yield launches
