"""An op: its schema, its check, its fake, its reference, the kernels that may run it, and the choice between them.

torch.library binds one kernel to a device; here a device may have several (C++, Triton, a BLAS route), so what is
bound is a choice made at call time. The choice is inside the op, where torch.compile does not see it: no graph break,
no dependence on import order, no rebinding of names.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch._C import _AutoDispatchBelowAutograd
from torch.compiler import is_compiling

from . import _flops, _library, _native, _storage, _tuning
from ._derivative import bind_derivative
from ._dispatcher import PLAIN, may_pass_the_dispatcher

KERNELS = ("cuda", "triton", "triton+blas", "cpu", "blas", "reference")  # best first: the order of the automatic choice
NATIVE = ("cpu", "cuda")  # kernels that take the arguments in the form of the schema
PARTS = "parts"  # the name that `choose` returns for an op that runs as calls of other ops
TIMED = ("cuda",)  # device types where the fastest kernel is found by timing, for ops with `timed`
OPS: dict[str, "Op"] = {}
DENSE = (*PLAIN, type(None))  # types of a weight that its op takes in the form of the schema


def _known(kernel: str | None) -> str | None:
    if kernel is not None and kernel not in KERNELS:
        raise ValueError(f"kernel={kernel!r} is not a kernel of pypeft_fast; choose one of {', '.join(KERNELS)}")
    return kernel


# Process-wide: on CUDA the backward pass runs in autograd's own thread, which would not see a ContextVar.
_forced = _from_environment = _known(os.environ.get("PYPEFT_FAST_KERNEL"))
_record: list[tuple[str, str]] | None = None
# The open blocks of `using` and of `recording`, oldest first; threads may close them in any order.
_using: list[list[str | None]] = []
_recordings: list[list[tuple[str, str]]] = []
_lock = threading.Lock()


@contextlib.contextmanager
def _open(blocks: list, block: list) -> Iterator[None]:
    with _lock:
        blocks.append(block)
        _activate_latest()
    try:
        yield
    finally:
        with _lock:
            blocks[:] = [other for other in blocks if other is not block]
            _activate_latest()


def _activate_latest() -> None:
    global _forced, _record
    _forced = _using[-1][0] if _using else _from_environment
    _record = _recordings[-1] if _recordings else None


@contextlib.contextmanager
def using(kernel: str) -> Iterator[None]:
    """Runs every op with this kernel, process-wide: cuda, triton, triton+blas, cpu, blas or reference.

    An op that cannot run with this kernel raises RuntimeError with the reason; there is no fallback. An unknown name
    raises ValueError. The environment variable PYPEFT_FAST_KERNEL does the same for a whole process. If blocks overlap
    (nested, or in several threads), the block that began last decides.
    """
    with _open(_using, [_known(kernel)]):
        yield


@contextlib.contextmanager
def recording() -> Iterator[list[tuple[str, str]]]:
    """Yields a list that receives (op, kernel) for every op that runs inside the block, forward and backward.

    If blocks overlap (nested, or in several threads), the block that began last records the ops of all threads.
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
    interpreted: tuple[str, ...]  # devices where the kernel runs slowly, in an interpreter: only when forced
    missing: Callable[[], str | None]  # why this machine or install cannot run the kernel at all
    rejects: Callable[..., str | None]  # why the kernel cannot run these arguments

    def why_not(self, args) -> str | None:
        device = args[0].device.type
        if self.devices is not None and device not in self.devices + (self.interpreted if _forced else ()):
            return f"it runs on {' and '.join(self.devices)}, not on {device}"
        return self.missing() or self.rejects(*args)


class Op:
    """`Op(schema)`, then the decorators check, fake, reference and kernel; CONTRIBUTING.md walks through one."""

    def __init__(self, schema: str, trailing: str = ""):
        self.name = schema.partition("(")[0]
        self.kernels: list[Kernel] = []
        self.schema = schema
        self._trailing = trailing  # arguments with defaults that end the schema
        self._check: Callable[..., None]
        self._fake: Callable
        self._direct: dict[str, Callable] = {}  # {device type: the C++ kernel that checks its own arguments}
        self._parts: Callable | None = None
        self._small: Callable[..., bool] = lambda *_: False
        self._at: int | None = None  # index of the weight argument, which may be a `Frozen`; None for an op without
        self._depends: Callable[..., tuple] | None = None
        self._op = _library.define(self.name, self._with_more(trailing))
        # The arguments of the op's Python functions.
        self._names = [argument.name for argument in self._op._schema.arguments if not argument.has_default_value()]
        _library.bind(self.name, "CompositeExplicitAutograd", self._run)
        self._derivative = bind_derivative(self.name, self._op)
        OPS[self.name] = self

    def __call__(self, *args):
        if self._at is not None and type(args[self._at]) not in DENSE:
            if is_compiling() or not self.tells(args):
                self._check(*self.given(args))  # the tensors of a Frozen, passed alone, do not tell its shape
            args = self.crossing(args)
        first = args[0]
        if not may_pass_the_dispatcher(first):
            return self._op(*args)
        with _AutoDispatchBelowAutograd():  # the Autograd kernel is in Python, and slow
            if first.is_cpu:
                direct = self._direct.get("cpu") if _forced is None or _forced == "cpu" else None
            else:
                direct = self._direct_on_gpu(args)
            if direct is None or _record is not None or first.dtype == torch.float64:
                given = self.given(args)
                return self._parts(*given) if self._is_in_parts(given) else self._op(*args)
            try:
                return direct(*args)
            except RuntimeError:
                return self._op(*args)  # raises the error with its full message, or chooses another kernel

    def goes_to_cpu(self, first) -> bool:
        """Whether a call of this op with this first argument is one for its C++ kernel for CPUs."""
        return (
            may_pass_the_dispatcher(first)
            and "cpu" in self._direct
            and first.is_cpu
            and first.dtype != torch.float64
            and _forced in (None, "cpu")
        )

    def record(self, kernel: str) -> None:
        """Adds a call of this op that this kernel ran to the list of `recording`."""
        record = _record  # read once: another thread may close the block
        if record is not None:
            record.append((self.name, kernel))

    def given(self, args):
        """Converts arguments from the form of the schema to the form of the op's Python functions."""
        return args

    def crossing(self, args):
        """Converts arguments from the form of the op's Python functions to the form of the schema."""
        return args

    def tells(self, args) -> bool:
        """Whether the other arguments tell the weight's shape and dtype, as its tensors are checked against them."""
        return False

    def takes(self, name, function):
        """Adapts the function of kernel `name` to the arguments of the op's Python functions."""
        return function

    def check(self, function):
        """Registers the validation of the arguments. It runs in eager mode and in tracing; kernels trust it."""
        self._check = function
        return function

    def check_arguments(self, *args):
        """Runs the registered check, for another op that is composed of this op."""
        self._check(*args)

    def fake_outputs(self, *args):
        """Runs the registered fake, for another op that is composed of this op."""
        return self._fake(*args)

    def function(self, kernel: str) -> Callable:
        """The function of one kernel, without checks, for another op that is composed of this op."""
        return self._named(kernel).function

    def takes_arguments(self, kernel: str, *args) -> bool:
        """Whether a kernel of this op takes these arguments, wherever the kernel is available."""
        return self._named(kernel).rejects(*args) is None

    def _named(self, kernel: str) -> Kernel:
        return next(k for k in self.kernels if k.name == kernel)

    def has_forced(self) -> bool:
        """Whether this op has the forced kernel; True if no kernel is forced."""
        return _forced is None or any(k.name == _forced for k in self.kernels)

    def fake(self, function):
        """Registers a function that returns empty outputs of the right shape, dtype and device, for tracing."""
        self._fake = function

        def checked(*args):
            args = self.given(args)
            self._check(*args)
            return function(*args)

        _library.bind_fake(self.name, checked)
        return function

    def gradients(self, formula):
        """Registers the gradient formula that `Derivative` uses for calls without an autograd.Function around them."""

        def of_all(needs, grads, args, outputs):
            found = formula(needs[: len(self._names)], grads, self.given(args), outputs)
            return *found, *(None for _ in needs[len(found) :])

        self._derivative.formula = of_all
        return formula

    def flops(self, formula):
        """formula(*args): the floating-point operations of the op's matrix products, for torch.utils.flop_counter."""
        _flops.FORMULAS[getattr(torch.ops.pypeft_fast, self.name)] = lambda *args: formula(*self.given(args))
        return formula

    def reference(self, function):
        """Registers the op in plain PyTorch: documentation, float64 ground truth, and a kernel for every device."""
        return self.kernel("reference")(function)

    def kernel(self, name, devices=None, missing=lambda: None, rejects=lambda *_: None, interpreted=()):
        """Registers a function of the op's arguments as a kernel; `Kernel` describes the parameters."""

        def bind(function):
            function = self._with_storages(function) if name.startswith("triton") else function
            function = function if name in NATIVE else self.takes(name, function)
            self.kernels.append(Kernel(_known(name), function, devices, interpreted, missing, rejects))
            self.kernels.sort(key=lambda k: KERNELS.index(k.name))
            return function

        return bind

    def _with_storages(self, function):
        """Adds the check of csrc/storage.h to a Triton kernel, which gets raw pointers and cannot check them."""

        def checked(*args):
            for name, value in zip(self._names, args, strict=True):
                for tensor in value if isinstance(value, (list, tuple)) else [value]:
                    if isinstance(tensor, torch.Tensor):
                        _storage.check(self.name, name, tensor)
            return function(*args)

        return checked

    def parts(self, function):
        """Registers the op as calls of other ops: used on a GPU, or if this op lacks the forced kernel.

        Each of those ops chooses its own kernel and is recorded on its own.
        """
        self._parts = function
        return function

    def small(self, function):
        """Registers function(*args): whether a GPU runs the kernel "cuda" of this op, if it can, and not the parts."""
        self._small = function
        return function

    def has_parts(self, device: str) -> bool:
        """Whether the op runs as calls of other ops on this device type, if no kernel is forced."""
        return self._parts is not None and device != "cpu"

    def launches(self, kernel: str) -> bool:
        """Whether the op has this kernel and is no composition of other ops, whose kernels it would launch."""
        return self._parts is None and any(k.name == kernel for k in self.kernels)

    def _is_in_parts(self, args) -> bool:
        if self._parts is None:
            return False
        if _forced is not None:
            return not self.has_forced()
        if args[0].is_cpu:
            return False
        return not (args[0].is_cuda and self._is_small(args) and self._named("cuda").why_not(args) is None)

    def _is_small(self, args) -> bool:
        try:
            return self._small(*args)
        except IndexError:  # a tensor has too few dimensions; the check of the op raises the error
            return False

    def _direct_on_gpu(self, args) -> Callable | None:
        """The C++ kernel to which a call goes directly, with arguments in the form of the schema; else None."""
        direct = self._direct.get("cuda")
        if direct is None or not args[0].is_cuda:
            return None
        if _forced is not None:
            return direct if _forced == "cuda" else None
        return direct if self._is_small(args) and _native.has_kernels_for(args[0].get_device()) else None

    def timed(self, depends):
        """Chooses the fastest of several GPU kernels by timing. depends(*args): the key of the choice."""
        self._depends = depends
        return depends

    def is_timed(self, device: str) -> bool:
        """Whether the kernel is chosen by timing on this device type."""
        return self._depends is not None and device in TIMED

    def native_cpu(self, rejects=lambda *_: None, checks=False):
        """Binds csrc/cpu/<op>.cpp, which registers itself as <op>_cpu with this op's schema.

        checks: the C++ kernel raises RuntimeError for whatever `check` refuses, so a plain eager call may go to it
        directly: the Python code of an op takes about 15 microseconds a call, more than a small layer's arithmetic.
        """
        twin = self._twin("cpu", "", self._trailing)
        self.kernel("cpu", ("cpu",), _native.missing_cpu, rejects)(lambda *args: twin(*self.crossing(args)))
        if checks and _native.missing_cpu() is None:
            self._direct["cpu"] = twin._op  # without the Python frame of OpOverload.__call__

    def native_cuda(self, rejects=lambda *_: None, checks=False):
        """Binds csrc/cuda/<op>.cu, which registers itself as <op>_cuda with this op's schema and one more argument
        before those with defaults, allow_tf32: PyTorch's own setting at the time of the call.

        checks: as in `native_cpu`, for an op with `parts`.
        """
        twin, required = self._twin("cuda", ", bool allow_tf32", self._trailing), len(self._names)

        def of_this_gpu(*args):
            return _native.too_old(args[0].device) or rejects(*args)

        def direct(*args):
            allow_tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
            return twin._op(*args[:required], allow_tf32, *args[required:])

        self.kernel("cuda", ("cuda",), _native.missing_cuda, of_this_gpu)(lambda *args: direct(*self.crossing(args)))
        if checks and _native.not_loaded_cuda() is None:
            self._direct["cuda"] = direct

    def _twin(self, kernel, more, trailing):
        name = f"{self.name}_{kernel}"
        twin = _library.define(name, self._with_more(more + trailing).replace(self.name, name, 1))
        bind_derivative(name, twin)
        return twin

    def _with_more(self, arguments):
        return self.schema.replace(") ->", f"{arguments}) ->", 1)

    def choose(self, *args) -> Kernel:
        """The kernel that runs these arguments now, or `parts`; RuntimeError if the forced kernel cannot run."""
        if self._is_in_parts(args):
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
        able.sort(key=lambda k: k.name == "cuda" and _tuning.leaves_mma_sync_behind(args))
        named = {k.name: k for k in able}
        key = (self.name, "kernel", *self._depends(*args))
        return named[_tuning.fastest(key, named, lambda kernel: kernel.function(*args), args[0].device)]

    def _run(self, *args):
        args = self.given(args)
        self._check(*args)
        device = args[0].device
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):  # Triton launches on the current device, not on the device of its tensors
                return self._run_chosen(args)
        return self._run_chosen(args)

    def _run_chosen(self, args):
        kernel = self.choose(*args)
        if kernel.name != PARTS:
            self.record(kernel.name)
        device = args[0].device.type
        if torch.is_autocast_enabled(device):  # an op's arguments decide its dtypes, not autocast
            with torch.autocast(device, enabled=False):
                return kernel.function(*args)
        return kernel.function(*args)
