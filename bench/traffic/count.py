"""The bytes that each kernel of a step reads and writes in GPU memory: counted, not estimated.

`Counting` is a dispatch mode that records, for every ATen op that is a kernel on a GPU, the bytes that the op reads and
writes. Each operand counts once per kernel: within a kernel caches are assumed perfect, between kernels empty.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pypeft_fast._op import OPS

CLASSES = ("MK", "MN", "NK", "workspace", "low rank")  # matrices, stacks of partial sums, and smaller tensors


@dataclass(frozen=True)
class Shape:
    M: int
    K: int
    N: int
    r: int = 16

    def __str__(self):
        return f"{self.M}x{self.K}x{self.N} r={self.r}"

    def class_of(self, tensor):
        """The class of a tensor in CLASSES, from its shape; M, K, N and r must differ. A packed mask is MK."""
        sizes = frozenset(tensor.shape) if tensor.dim() == 2 else frozenset()
        if tensor.dim() == 3:
            return "workspace"
        packed = tensor.dtype == torch.uint8 and tensor.shape == (self.M, self.K // 8)
        if packed or sizes == {self.M, self.K}:
            return "MK"
        return {frozenset({self.M, self.N}): "MN", frozenset({self.N, self.K}): "NK"}.get(sizes, "low rank")

    @property
    def elements(self):
        return {"MK": self.M * self.K, "MN": self.M * self.N, "NK": self.N * self.K}


@dataclass
class Kernel:
    """One kernel on a GPU: the bytes it reads and writes, by class, and its floating-point operations."""

    name: str
    backward: bool
    read: Counter = field(default_factory=Counter)
    written: Counter = field(default_factory=Counter)
    flops: int = 0
    unit: str = "bf16"  # the units of its products: "bf16" or "fp32"

    @property
    def bytes(self):
        return self.read.total() + self.written.total()


def bytes_of(tensor):
    """The bytes of the elements in memory; an expanded axis counts once."""
    sizes = (n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(sizes) * tensor.element_size() if tensor.numel() else 0


NOT_KERNELS = ("empty", "new_empty", "empty_like", "device", "detach", "_unsafe_view")
FILLS = ("copy_", "zero_", "fill_", "randint")  # ops that write their output without reading it


class Counting(TorchDispatchMode):
    """Records in `kernels` every kernel that runs in the block. Set `backward` before the backward pass."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.kernels, self.backward = shape, [], False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.namespace == "pypeft_fast":  # one of our ops: the kernels that it runs are counted
            kernel = OPS[function._schema.name.partition("::")[2]].choose(*args)
            with self:
                return kernel.function(*args)
        outputs = function(*args, **kwargs)
        name, returns = function._schema.name.partition("::")[2], function._schema.returns
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        # On a GPU the tickets (split-K semaphores) are one buffer per stream, zeroed once. On a CPU every launch
        # creates them.
        tickets = name == "zeros" and outputs.dtype == torch.int32
        if isinstance(outputs, torch.Tensor | tuple) and not views and not tickets and name not in NOT_KERNELS:
            self.kernels.append(self._kernel(name, args, kwargs, outputs))
        return outputs

    def _kernel(self, name, args, kwargs, outputs):
        kernel = Kernel(name, self.backward)
        unread = args[:1] if name in FILLS or kwargs.get("beta") == 0 else ()
        for value in args[len(unread) :]:
            if isinstance(value, torch.Tensor):
                kernel.read[self.shape.class_of(value)] += bytes_of(value)
        for output in outputs if isinstance(outputs, tuple) else (outputs,):
            kernel.written[self.shape.class_of(output)] += bytes_of(output)
        if name in ("mm", "addmm", "addmm_"):
            left, right = [a for a in args if isinstance(a, torch.Tensor)][-2:]
            kernel.flops = 2 * left.shape[0] * left.shape[1] * right.shape[1]
            kernel.unit = "fp32" if left.dtype == torch.float32 else "bf16"
        return kernel


@dataclass
class Step:
    """A forward and backward pass: its kernels, and the bytes that autograd saves for backward, by class."""

    kernels: list[Kernel]
    saved: Counter

    def launches(self, backward):
        return sum(k.backward == backward for k in self.kernels)

    def moved(self):
        return sum((k.read + k.written for k in self.kernels), Counter())


def counted(counting: Counting, forward: Callable, inputs, parameters, dY) -> Step:
    """Runs forward() and the gradients of `inputs`. A saved tensor counts once, and `parameters` do not count."""
    known, kept = {p.untyped_storage()._cdata for p in parameters}, {}

    def pack(tensor):
        if tensor.untyped_storage()._cdata not in known:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with counting:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = forward()
        counting.backward = True
        torch.autograd.grad(y, inputs, dY)
    saved = Counter()
    for tensor in kept.values():
        saved[counting.shape.class_of(tensor)] += bytes_of(tensor)
    return Step(counting.kernels, saved)
