"""An op: its schema, its check, its fake, its reference, the kernels that may run it, and the choice between them.

torch.library binds one kernel to a device; here a device may have several (C++, Triton, a BLAS route), so what is
bound is a choice made at call time. The choice is inside the op and hence invisible to torch.compile: no graph break,
no import order, no rebinding of names.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from . import _flops, _library, _native, _storage, _tuning
from ._derivative import Derivative, nobody_asks

KERNELS = ("cuda", "triton", "cpu", "blas", "reference")  # best first: the order of the automatic choice
NATIVE = ("cpu", "cuda")  # kernels that take what crosses a schema
PARTS = "parts"  # what `choose` names an op that runs as calls of others
TIMED = ("cuda",)  # devices where the choice among an op's fast kernels is measured, if the op says on what it depends
OPS: dict[str, "Op"] = {}
PLAIN = (torch.Tensor, torch.nn.Parameter)
DENSE = (*PLAIN, type(None))  # of the argument that an op takes otherwise than its schema


def _known(kernel: str | None) -> str | None:
    if kernel is not None and kernel not in KERNELS:
        raise ValueError(f"kernel={kernel!r} is not a kernel of pypeft_fast; choose one of {', '.join(KERNELS)}")
    return kernel


# Process-wide, not a ContextVar: on CUDA the backward runs in autograd's own thread, which would not see that.
_forced = _from_environment = _known(os.environ.get("PYPEFT_FAST_KERNEL"))
_record: list[tuple[str, str]] | None = None
# The blocks of both kinds that are open, in the order in which they began; threads end theirs in any order.
_using: list[list[str | None]] = []
_recordings: list[list[tuple[str, str]]] = []
_lock = threading.Lock()


@contextlib.contextmanager
def _open(blocks: list, block: list) -> Iterator[None]:
    with _lock:
        blocks.append(block)
        _heed_the_last()
    try:
        yield
    finally:
        with _lock:
            blocks[:] = [other for other in blocks if other is not block]
            _heed_the_last()


def _heed_the_last() -> None:
    global _forced, _record
    _forced = _using[-1][0] if _using else _from_environment
    _record = _recordings[-1] if _recordings else None


@contextlib.contextmanager
def using(kernel: str) -> Iterator[None]:
    """Runs every op with this kernel, process-wide: "reference", "blas", "cpu", "triton" or "cuda".

    An op that cannot run with it raises RuntimeError that says why; nothing falls back. An unknown name is a
    ValueError. The environment variable PYPEFT_FAST_KERNEL does the same for a whole process. Of blocks that overlap,
    nested or in threads, the one that began last counts.
    """
    with _open(_using, [_known(kernel)]):
        yield


@contextlib.contextmanager
def recording() -> Iterator[list[tuple[str, str]]]:
    """Yields a list that receives (op, kernel) for every op that runs inside the block, forward and backward.

    Of blocks that overlap, nested or in threads, the one that began last receives them, from every thread.
    """
    record = []
    with _open(_recordings, record):
        yield record


def kernels() -> dict[str, dict[str, str]]:
    """{op: {kernel: "available" or the reason why it is not}} on this machine, in the order of the automatic choice."""
    return {op.name: {k.name: k.missing() or "available" for k in op.kernels} for op in OPS.values()}


@dataclass(frozen=True)
class Kernel:
    name: str
    function: Callable
    devices: tuple[str, ...] | None  # None: every device
    interpreted: tuple[str, ...]  # devices where it can run, but slowly: only when forced
    missing: Callable[[], str | None]  # why this machine or install cannot run it at all
    rejects: Callable[..., str | None]  # why it cannot run these arguments

    def why_not(self, args) -> str | None:
        device = args[0].device.type
        if self.devices is not None and device not in self.devices + (self.interpreted if _forced else ()):
            return f"it runs on {' and '.join(self.devices)}, not on {device}"
        return self.missing() or self.rejects(*args)


def _with_derivative(name, overload):
    derivative = Derivative(name, overload)
    _library.bind(name, "Autograd", derivative, with_keyset=True)
    return derivative


class Op:
    """`Op(schema)`, then the decorators check, fake, reference and kernel; CONTRIBUTING.md walks through one."""

    def __init__(self, schema: str, trailing: str = ""):
        self.name = schema.partition("(")[0]
        self.kernels: list[Kernel] = []
        self.schema = schema
        self._trailing = trailing  # arguments with defaults that end the schema
        self._check: Callable[..., None]
        self._fake: Callable
        self._direct = None  # the C++ kernel for CPUs, if it checks its arguments itself
        self._parts: Callable | None = None
        self._at: int | None = None  # where an argument is that may have to be put as the schema takes it
        self._depends: Callable[..., tuple] | None = None
        self._op = _library.define(self.name, self._with_more(trailing))
        # Those that the op's functions take.
        self._names = [argument.name for argument in self._op._schema.arguments if not argument.has_default_value()]
        _library.bind(self.name, "CompositeExplicitAutograd", self._run)
        self._derivative = _with_derivative(self.name, self._op)
        OPS[self.name] = self

    def __call__(self, *args):
        if self._at is not None and type(args[self._at]) not in DENSE:
            self._check(*self.given(args))  # while the shape of what crosses is known
            args = self.crossing(args)
        first = args[0]
        if (
            torch.compiler.is_compiling()
            or type(first) not in PLAIN  # a subclass that traces or wraps,
            or torch._C._len_torch_dispatch_stack() > 0  # or a mode that looks on: both know the op, not its twin
            or not nobody_asks()
        ):
            return self._op(*args)
        with torch._C._AutoDispatchBelowAutograd():  # its kernel there is in Python
            if (
                self._direct is None
                or _record is not None
                or (_forced is not None and _forced != "cpu")
                or not first.is_cpu
                or first.dtype == torch.float64
            ):
                return self._parts(*self.given(args)) if self._is_in_parts(first) else self._op(*args)
            try:
                return self._direct(*args)
            except RuntimeError:
                self._check(*self.given(args))  # it finds the words for what the kernel refused
                if self.is_native(args):
                    raise
                return self._op(*args)

    def given(self, args):
        """The arguments of the schema as the op's functions take them."""
        return args

    def crossing(self, args):
        """The arguments of the op's functions as the schema takes them."""
        return args

    def is_native(self, args) -> bool:
        """Whether the kernels in C++ read what crosses the schema."""
        return True

    def takes(self, name, function):
        """A function of that kernel as one of all arguments that the op's functions take."""
        return function

    def check(self, function):
        """Validates the arguments: in eager, where a fake never runs, and while tracing. Kernels trust it."""
        self._check = function
        return function

    def check_arguments(self, *args):
        """What `check` registered, for an op that is made of this one."""
        self._check(*args)

    def fake_outputs(self, *args):
        """What `fake` registered, for an op that is made of this one."""
        return self._fake(*args)

    def function(self, kernel: str) -> Callable:
        """The function behind one of this op's kernels, without checks, for an op that is made of this one."""
        return next(k.function for k in self.kernels if k.name == kernel)

    def has_forced(self) -> bool:
        """Whether `using` forces none of the kernels that this op lacks."""
        return _forced is None or any(k.name == _forced for k in self.kernels)

    def fake(self, function):
        """Empty outputs of the right shape, dtype and device, for tracing."""
        self._fake = function

        def checked(*args):
            args = self.given(args)
            self._check(*args)
            return function(*args)

        _library.bind_fake(self.name, checked)
        return function

    def gradients(self, formula):
        """What `Derivative` calls a formula, for calls that no autograd.Function stands over."""

        def of_all(needs, grads, args, outputs):
            found = formula(needs[: len(self._names)], grads, self.given(args), outputs)
            return *found, *(None for _ in needs[len(found) :])

        self._derivative.formula = of_all
        return formula

    def flops(self, formula):
        """formula(*args): the floating-point operations of the op's products, for torch.utils.flop_counter."""
        _flops.FORMULAS[getattr(torch.ops.pypeft_fast, self.name)] = lambda *args: formula(*self.given(args))
        return formula

    def reference(self, function):
        """The op in plain PyTorch: its documentation, its truth in float64, and a kernel on every device."""
        return self.kernel("reference")(function)

    def kernel(self, name, devices=None, missing=lambda: None, rejects=lambda *_: None, interpreted=()):
        """Binds a function of the op's arguments; `Kernel` tells what the others mean."""

        def bind(function):
            function = self._with_storages(function) if name == "triton" else function
            function = function if name in NATIVE else self.takes(name, function)
            self.kernels.append(Kernel(_known(name), function, devices, interpreted, missing, rejects))
            self.kernels.sort(key=lambda k: KERNELS.index(k.name))
            return function

        return bind

    def _with_storages(self, function):
        """The kernel behind csrc/storage.h's check, for one that reads memory by pointers and cannot make it itself."""

        def checked(*args):
            for name, value in zip(self._names, args, strict=True):
                for tensor in value if isinstance(value, (list, tuple)) else [value]:
                    if isinstance(tensor, torch.Tensor):
                        _storage.check(self.name, name, tensor)
            return function(*args)

        return checked

    def parts(self, function):
        """The op as calls of others, where no kernel of its own is meant: on a GPU, or if it lacks the forced one.

        Each of those ops chooses its kernel, and is recorded, for itself.
        """
        self._parts = function
        return function

    def _is_in_parts(self, first) -> bool:
        if self._parts is None:
            return False
        return not first.is_cpu if _forced is None else not self.has_forced()

    def timed(self, depends):
        """Where several kernels can run on a GPU, the fastest runs. depends(*args): what the choice depends on."""
        self._depends = depends
        return depends

    def is_timed(self, device: str) -> bool:
        """Whether the choice among this op's fast kernels is measured on tensors of this type of device."""
        return self._depends is not None and device in TIMED

    def native_cpu(self, rejects=lambda *_: None, checks=False):
        """Binds csrc/cpu/<op>.cpp, which registers itself as <op>_cpu with this op's schema.

        checks: it refuses with RuntimeError whatever `check` refuses, so that a plain call may go straight to it: this
        op's Python costs about 15 microseconds a call, more than a small layer's arithmetic.
        """
        twin = self._twin("cpu", "", self._trailing)
        self.kernel("cpu", ("cpu",), _native.missing_cpu, rejects)(lambda *args: twin(*self.crossing(args)))
        if checks and _native.missing_cpu() is None:
            self._direct = twin

    def native_cuda(self, rejects=lambda *_: None):
        """Binds csrc/cuda/<op>.cu, which registers itself as <op>_cuda with this op's schema and one argument more,
        before those that have defaults: whether products of float32 may be rounded to tf32, as PyTorch's own setting
        says at the call."""
        twin, required = self._twin("cuda", ", bool allow_tf32", self._trailing), len(self._names)

        def of_this_gpu(*args):
            return _native.too_old(args[0].device) or rejects(*args)

        def run(*args):
            args = self.crossing(args)
            allow_tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
            return twin(*args[:required], allow_tf32, *args[required:])

        self.kernel("cuda", ("cuda",), _native.missing_cuda, of_this_gpu)(run)

    def _twin(self, kernel, more, trailing):
        name = f"{self.name}_{kernel}"
        twin = _library.define(name, self._with_more(more + trailing).replace(self.name, name, 1))
        _with_derivative(name, twin)
        return twin

    def _with_more(self, arguments):
        return self.schema.replace(") ->", f"{arguments}) ->", 1)

    def choose(self, *args) -> Kernel:
        """The kernel that runs these arguments now, or `parts`; RuntimeError if the forced one cannot."""
        if self._is_in_parts(args[0]):
            return Kernel(PARTS, self._parts, None, (), lambda: None, lambda *_: None)
        able = (k for k in self.kernels if _forced in (None, k.name) and k.why_not(args) is None)
        if _forced is None and self.is_timed(args[0].device.type):
            return self._fastest([k for k in able if k.name != "reference"], args)
        for kernel in able:
            return kernel
        reasons = [k.why_not(args) for k in self.kernels if k.name == _forced] or ["the op has no such kernel"]
        have = ", ".join(k.name for k in self.kernels)
        raise RuntimeError(f"{self.name}: kernel {_forced!r} cannot run: {reasons[0]}. This op has: {have}")

    def _fastest(self, able, args):
        able.sort(key=lambda k: k.name == "cuda" and _tuning.leaves_mma_sync_behind(args[0]))
        named = {k.name: k for k in able}
        key = (self.name, "kernel", *self._depends(*args))
        return named[_tuning.fastest(key, named, lambda kernel: kernel.function(*args), args[0].device)]

    def _run(self, *args):
        args = self.given(args)
        self._check(*args)
        device = args[0].device
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):  # Triton launches on the current device, whatever its tensors'
                return self._run_chosen(args)
        return self._run_chosen(args)

    def _run_chosen(self, args):
        kernel = self.choose(*args)
        record = _record  # read once: another thread may end it
        if record is not None and kernel.name != PARTS:
            record.append((self.name, kernel.name))
        device = args[0].device.type
        if torch.is_autocast_enabled(device):  # an op's dtypes are its arguments': inside it autocast changes nothing
            with torch.autocast(device, enabled=False):
                return kernel.function(*args)
        return kernel.function(*args)
