"""The peak memory of a run, from the parts that exist at the same time."""

from dataclasses import asdict, dataclass

from .live import Activations

# Measured on CPUs: memory that a first step of any model takes and keeps, for the buffers of the vendor's product and
# the code of the libraries.
WORKING_CPU = 100 * 10**6
# Measured on CPUs: the holes that freed tensors leave in the C library's heap, as a part of the tensors in it. It was
# 0.1 to 0.5 in models of 30 blocks.
HOLES = 0.4
# Not measured: what CUDA and the libraries for it take in a process with one GPU.
WORKING_GPU = 600 * 10**6
MASTER = 4  # bytes of a trained parameter, which PEFT keeps in float32


@dataclass(frozen=True)
class Base:
    """A base model in memory. weights: its bytes. dense: its bytes before it is quantised. checkpoint: the bytes of its
    file. is_converted: whether the file has another dtype. copy: bytes of one dequantised layer, which exists on a GPU
    for the length of a product."""

    weights: int
    dense: int
    checkpoint: int
    is_converted: bool
    copy: int = 0

    @property
    def loading(self) -> int:
        """The most bytes while the model is loaded: the file is mapped, and converted or quantised weights are new."""
        return self.checkpoint + (self.dense if self.is_converted else self.weights if self.is_quantised else 0)

    @property
    def is_quantised(self) -> bool:
        return self.weights < self.dense


@dataclass(frozen=True)
class Memory:
    """Bytes of a step: the process without the model, the model, the adapter, AdamW's two moments, the activations or
    the gradients, whichever are more, and what loading takes beyond that."""

    process: int
    weights: int
    adapter: int
    optimizer: int
    activations: int
    loading: int

    @property
    def peak(self) -> int:
        return sum(asdict(self).values())


def memory(base: Base, parameters: int, its: Activations, depth: int, process: int, on_gpu: bool) -> Memory:
    """The memory of a run with this many trained parameters. process: the bytes of this process without a model."""
    adapter = MASTER * parameters
    gradients = adapter + its.block
    if on_gpu:
        step = max(its.at(depth) + base.copy, gradients)
        return Memory(WORKING_GPU, base.weights, adapter, 2 * adapter, step, 0)
    step = max(its.at(depth) + its.heap + int(HOLES * its.small_at(depth)), gradients)
    held = base.weights + 3 * adapter + step + WORKING_CPU
    return Memory(
        process + WORKING_CPU,
        base.weights,
        adapter,
        2 * adapter,
        step,
        max(0, base.loading - held),
    )
