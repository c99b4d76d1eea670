"""The traffic of our Triton kernels: the number of passes over each operand, counted in Triton's interpreter, times the
operand's bytes.

The interpreter runs a small shape with the tiles of a GPU, and every address is recorded
(pypeft_fast.testing.triton_accesses). The number of passes over an operand depends only on r. For a large shape the
launches are recorded and not run, and their operands are multiplied by these numbers of passes.
"""

import contextlib
import dataclasses
import functools
import os
from unittest import mock

import torch

os.environ.setdefault("TRITON_INTERPRET", "1")  # read by Triton when a kernel is first imported
if os.environ["TRITON_INTERPRET"] != "1":
    raise SystemExit("traffic is counted in Triton's interpreter: unset TRITON_INTERPRET, or set it to 1")

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

import pypeft_fast as pf  # noqa: E402
from pypeft_fast._op import OPS  # noqa: E402
from pypeft_fast.kernels import _tiles  # noqa: E402
from pypeft_fast.testing import Case, sample, triton_accesses  # noqa: E402

from .count import Counting, Kernel, Shape, Step, bytes_of, counted  # noqa: E402

ARCH, PROCESSORS = 90, 132  # the GPU whose tiles are used; on other GPUs the workspaces differ
TRACED = Shape(M=160, K=192, N=320)
SCALING, P = 2.0, 0.05


@dataclasses.dataclass(frozen=True)
class Method:
    """One of our layers: LoRA, LoRA with rows of several adapters, IA3 on the outputs, or on the inputs
    (feedforward)."""

    name: str
    p: float = P
    adapter: torch.dtype = torch.bfloat16
    feedforward: bool = False
    count: int = 1  # of adapters


@dataclasses.dataclass(frozen=True)
class Traced:
    """A launch with all its accesses, and {argument: (tensor, class)}."""

    launch: triton_accesses.Launch
    operands: dict[str, tuple[torch.Tensor, str]]

    def passes(self, name):
        """(number of reads, number of writes) of one whole operand; integers except for the tickets.

        The tiles of a matrix product share their operands through L2, so an operand counts once for each line that
        loads it. In other kernels a second read of x or dY, for another block of ranks, starts after the first one has
        ended, so it counts again.
        """
        tensor, kind = self.operands[name]
        shared = self.launch.kernel.removeprefix("_") in _tiles.GEMMS or kind not in ("MK", "MN")
        size, read = bytes_of(tensor), self.launch.once if shared else self.launch.loaded
        return (read[name] / size, self.launch.stored[name] / size) if size else (0.0, 0.0)


LORA, IA3, IA3_FEEDFORWARD = Method("lora"), Method("ia3"), Method("ia3", feedforward=True)
SEGMENTS = Method("segments", count=3)


@contextlib.contextmanager
def _as_on_gpu(run):
    """Every launch gets the GPU's default tiles; run(executor, *args, **kwargs) replaces its execution."""

    def launch(op, go, operands, sizes, *options):
        go(_tiles.default(op, ARCH, _tiles.bits_of(ARCH, tuple(t.dtype for t in operands))))

    with (
        pf.using("triton"),
        mock.patch.object(_tiles, "launch", launch),
        mock.patch.object(_tiles, "processors", lambda device: PROCESSORS),
        mock.patch.object(interpreter.GridExecutor, "__call__", run),
    ):
        yield


def _leaves(shape, method, make):
    x, dY, weight = make(shape.M, shape.K), make(shape.M, shape.N), make(shape.N, shape.K)
    if method.name == "segments":
        ranks = [max(1, shape.r >> a) for a in range(method.count)]
        adapters = [make(r, shape.K).to(method.adapter) for r in ranks]
        adapters += [make(shape.N, r).to(method.adapter) for r in ranks]
    elif method.name == "lora":
        adapters = make(shape.r, shape.K).to(method.adapter), make(shape.N, shape.r).to(method.adapter)
    else:
        adapters = (make(shape.K if method.feedforward else shape.N).to(method.adapter),)
    return x.requires_grad_(), weight, [a.requires_grad_() for a in adapters], dY


def _forward(method, x, weight, adapters):
    if method.name == "segments":
        index = torch.arange(x.shape[0]) * 7 % method.count
        its = adapters[: method.count], adapters[method.count :]
        return pf.multi_lora_linear(x, weight, *its, index, scalings=SCALING, dropout_ps=method.p)
    if method.name == "lora":
        return pf.lora_linear(x, weight, *adapters, scaling=SCALING, dropout_p=method.p)
    return pf.ia3_linear(x, weight, *adapters, feedforward=method.feedforward)


def _as_traced(launch, tensors, shape):
    if launch.outside:
        raise RuntimeError(f"accesses outside the operands: {launch}")
    return Traced(launch, {name: (tensor, shape.class_of(tensor)) for name, tensor in tensors.items()})


@functools.cache
def traced(method, r) -> list[Traced]:
    """The launches of a forward and backward pass of TRACED at rank r, with all accesses."""
    operands = []
    execute = interpreter.GridExecutor.__call__

    def run(executor, *args, **kwargs):
        operands.append(triton_accesses.tensors_of(executor.arg_names, args, kwargs))
        execute(executor, *args, **kwargs)

    shape = dataclasses.replace(TRACED, r=r)
    x, weight, adapters, dY = _leaves(shape, method, lambda *s: torch.randn(*s).to(torch.bfloat16))
    beside = {}
    if method.name == "segments":
        beside = {f"adapters[{i}]": adapter for i, adapter in enumerate(adapters)}
        with pf.using("triton"):  # what a first call writes of the adapters' addresses, later calls read
            torch.autograd.grad(_forward(method, x, weight, adapters), (x, *adapters), dY)
    with _as_on_gpu(run), triton_accesses.traced(beside) as launches:
        torch.autograd.grad(_forward(method, x, weight, adapters), (x, *adapters), dY)
    return [_as_traced(launch, beside | tensors, shape) for launch, tensors in zip(launches, operands, strict=True)]


def _flops(kernel, shape):
    M, K, N, r = shape.M, shape.K, shape.N, shape.r
    return {
        "_lora_shrink": 2 * M * K * r,
        "_lora_linear": 2 * M * N * (K + r),
        "_lora_ds_db": 4 * M * N * r,
        "_lora_dx": 2 * M * K * (N + r),
        "_lora_da": 2 * M * K * r,
        "_low_rank": 0,  # its products take less time than its stores
        "_ia3_linear": 2 * M * N * K,
        "_ia3_dx_dl": 2 * M * N * K,
    }[kernel]


def _counted(executor, args, kwargs, small, shape, backward) -> Kernel:
    """A launch of this shape, with the numbers of passes of the traced launch `small`."""
    kernel = Kernel(executor.fn.__name__, backward, flops=_flops(executor.fn.__name__, shape))
    for name, tensor in triton_accesses.tensors_of(executor.arg_names, args, kwargs).items():
        read, written = small.passes(name)
        traced_tensor, kind = small.operands[name]
        if bytes_of(tensor) and not bytes_of(traced_tensor):
            raise RuntimeError(f"{kernel.name}: {name} is used at {shape} and not at {TRACED}, where it is traced")
        kernel.read[kind] += round(read * bytes_of(tensor))
        kernel.written[kind] += round(written * bytes_of(tensor))
    return kernel


def ours(shape, method=LORA) -> Step:
    """A forward and backward pass of this shape: the launches of this shape, with the numbers of passes of TRACED."""
    seen = iter(traced(method, shape.r))
    x, weight, adapters, dY = _leaves(shape, method, functools.partial(torch.empty, dtype=torch.bfloat16))
    counting = Counting(shape)

    def record(executor, *args, **kwargs):
        counting.kernels.append(_counted(executor, args, kwargs, next(seen), shape, counting.backward))

    with _as_on_gpu(record):
        forward = functools.partial(_forward, method, x, weight, adapters)
        step = counted(counting, forward, (x, *adapters), (weight, *adapters), dY)
    if next(seen, None) is not None:
        raise RuntimeError(f"fewer launches at {shape} than at {TRACED}")
    return step


def _arguments(op, shape, method):
    return sample(op, Case(shape.M, shape.K, shape.N, shape.r, method.p, torch.bfloat16, bias=False))


@functools.cache
def _traced_product(op, kernel, method, r) -> list[Traced]:
    """The launches of Triton that this kernel of lora_linear or lora_dx makes at TRACED, with all accesses."""
    operands = []
    execute = interpreter.GridExecutor.__call__

    def run(executor, *args, **kwargs):
        operands.append(triton_accesses.tensors_of(executor.arg_names, args, kwargs))
        execute(executor, *args, **kwargs)

    shape = dataclasses.replace(TRACED, r=r)
    with _as_on_gpu(run), triton_accesses.traced() as launches:
        OPS[op].function(kernel)(*_arguments(op, shape, method))
    return [_as_traced(launch, tensors, shape) for launch, tensors in zip(launches, operands, strict=True)]


def _product(op, kernel, shape, method) -> list[Kernel]:
    """What this kernel of lora_linear or lora_dx runs, counted on fake tensors."""
    seen = iter(_traced_product(op, kernel, method, shape.r))
    counting = Counting(shape)
    counting.backward = op == "lora_dx"

    def record(executor, *args, **kwargs):
        counting.kernels.append(_counted(executor, args, kwargs, next(seen), shape, counting.backward))

    with FakeTensorMode(), _as_on_gpu(record):
        arguments = _arguments(op, shape, method)
        with counting:
            OPS[op].function(kernel)(*arguments)
    return counting.kernels


def by_vendor(shape, method=LORA, kernel="blas") -> Step:
    """Our pass if tuning chooses a kernel with the vendor's GEMM for both products: "blas" or "triton+blas"."""
    step = ours(shape, method)
    routes = {f"_{op}": _product(op, kernel, shape, method) for op in ("lora_linear", "lora_dx")}
    return Step([k for each in step.kernels for k in routes.get(each.name, [each])], step.saved)
