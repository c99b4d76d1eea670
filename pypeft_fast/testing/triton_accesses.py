"""What Triton kernels read and write, seen in Triton's interpreter: every address, held against the arguments.

    with traced() as launches:
        op(...)

A kernel may touch elements of its tensor arguments and nothing else, not even the gaps between strided rows.
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
    loaded: Counter = field(default_factory=Counter)  # bytes by argument, each instruction's repetitions counted once
    stored: Counter = field(default_factory=Counter)
    # Bytes of the distinct elements that each line of the kernel loads, by argument: one pass over a matrix counts once
    # however many programs share it, and two lines that both read it are two passes.
    once: Counter = field(default_factory=Counter)
    outside: list[str] = field(default_factory=list)  # accesses to anything else


class _Argument:
    def __init__(self, name, tensor):
        self.name, self.size = name, tensor.element_size()
        offsets = np.zeros(1 if tensor.numel() else 0, np.int64)
        for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
            offsets = (offsets[:, None] + np.arange(length)[None, :] * stride).ravel() if stride else offsets
        self.addresses = np.unique(offsets * self.size + tensor.data_ptr())
        self.seen = defaultdict(lambda: np.zeros(len(self.addresses), bool))  # by the line that loads

    def at(self, pointers):
        """Places of these addresses among the elements, and whether each is one."""
        if not len(self.addresses):
            return np.zeros(len(pointers), np.int64), np.zeros(len(pointers), bool)
        places = np.searchsorted(self.addresses, pointers).clip(max=len(self.addresses) - 1)
        return places, self.addresses[places] == pointers


def _line(launch):
    """Where in the kernel the access that is being noted stands: its line, and those of the calls that led there."""
    frame, lines = sys._getframe(2), []
    while frame.f_code is not launch.__code__:
        lines.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return tuple(lines)


@contextlib.contextmanager
def traced():
    """Yields a list that receives a Launch for every Triton kernel that is interpreted inside the block."""
    launches: list[Launch] = []
    arguments: list[_Argument] = []
    call = interpreter.GridExecutor.__call__
    load, store = interpreter.InterpreterBuilder.create_masked_load, interpreter.InterpreterBuilder.create_masked_store
    rmw = interpreter.InterpreterBuilder.create_atomic_rmw

    def launch(executor, *args, **kwargs):
        values = dict(zip(executor.arg_names, args, strict=False)) | kwargs
        values = {n: v.base if isinstance(v, TensorDescriptor) else v for n, v in values.items()}
        arguments[:] = [_Argument(n, v) for n, v in values.items() if isinstance(v, torch.Tensor)]
        launches.append(Launch(executor.fn.__name__, int(np.prod(executor.grid))))
        call(executor, *args, **kwargs)
        for argument in arguments:
            seen = sum(int(elements.sum()) for elements in argument.seen.values())
            launches[-1].once[argument.name] = seen * argument.size

    def note(kind, pointers, mask):
        pointers, mask = np.asarray(pointers), np.asarray(mask)  # Triton 3.7's descriptors pass views of their memory
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
