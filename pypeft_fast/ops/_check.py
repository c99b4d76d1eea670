"""What the ops' checks share: every message names the argument, its value and what is accepted."""

import math
import numbers

import torch

ACTIVATIONS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NUMBERS = (float, numbers.Real, torch.SymFloat, torch.SymInt)


def autocasts(device) -> bool:
    """Whether autocast is on for this device. For a device without autocast, such as meta, PyTorch would raise."""
    if torch.compiler.is_compiling():  # PyTorch 2.11 cannot trace is_autocast_available
        return device.type != "meta" and torch.is_autocast_enabled(device.type)
    if not torch._C._is_any_autocast_enabled():
        return False  # ten times cheaper than the calls below
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def matrix(op, **tensors):
    """Checks that each tensor is 2-D and dense."""
    for name, t in tensors.items():
        dense(op, name, t)
        if t.dim() != 2:
            raise ValueError(f"{op}: {name} must have 2 dimensions, got shape {tuple(t.shape)}")


def rows(op, name, tensor):
    """x [.., K] as [M, K]."""
    if tensor.dim() < 1:
        raise ValueError(f"{op}: {name} must have at least 1 dimension, got shape {tuple(tensor.shape)}")
    return tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])


def features(op, x, name, parameter):
    """Checks that x [.., K] has as many features as the layer's parameter [.., K] has columns; the error names x."""
    K = parameter.shape[-1]
    if x.dim() < 1 or x.shape[-1] != K:
        raise ValueError(
            f"{op}: x has shape {tuple(x.shape)}, expected (.., {K}): {name} of shape {tuple(parameter.shape)} "
            f"takes {K} features"
        )


def frozen(op, x, weight):
    """Checks x [.., K] against a `Frozen` weight: an op gets only its tensors, and takes K and the dtype from x."""
    features(op, x, "weight", weight)
    same_dtype(op, "x", x, weight=weight)


def dense(op, name, tensor):
    """Checks that a tensor is not sparse; a `Frozen` has tensors of its own."""
    if isinstance(tensor, torch.Tensor) and tensor.layout is not torch.strided:
        raise TypeError(f"{op}: {name} has layout {tensor.layout}; give {name}.to_dense()")


def shape(op, name, tensor, expected, why):
    dense(op, name, tensor)
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}, expected {tuple(expected)}: {why}")


def floating(op, name, tensor):
    if tensor.dtype not in ACTIVATIONS:
        accepted = ", ".join(str(d) for d in ACTIVATIONS)
        raise TypeError(f"{op}: {name} has dtype {tensor.dtype}; accepted are {accepted}")


def same_dtype(op, like_name, like, **tensors):
    for name, t in tensors.items():
        if t is not None and t.dtype != like.dtype:
            raise TypeError(f"{op}: {name} is {t.dtype} but {like_name} is {like.dtype}; cast one of them")


def adapter_dtype(op, activation_name, activation, name, parameter):
    """Checks that an adapter has the dtype of the activations, or is float32 with half-precision activations."""
    if parameter.dtype == activation.dtype:
        return
    if parameter.dtype == torch.float32 and activation.dtype in (torch.bfloat16, torch.float16):
        return
    raise TypeError(
        f"{op}: {name} is {parameter.dtype} over a {activation.dtype} {activation_name}; accepted are "
        f"{activation.dtype} and, over bfloat16 or float16, float32"
    )


def same_device(op, like_name, like, **tensors):
    for name, t in tensors.items():
        if t is not None and t.device != like.device:
            raise ValueError(f"{op}: {name} is on {t.device} but {like_name} is on {like.device}; move one of them")


def rank(op, lora_A):
    """Checks that lora_A [r, K] has at least one row."""
    if lora_A.shape[0] < 1:
        raise ValueError(f"{op}: lora_A has shape {tuple(lora_A.shape)}: the rank must be at least 1")


def ia3_l(op, ia3_l, weight, feedforward):
    """Checks that ia3_l has one factor per output of the layer, or with feedforward per input."""
    N, K = weight.shape
    which = f"[{'K' if feedforward else 'N'}] {'with' if feedforward else 'without'} feedforward"
    shape(op, "ia3_l", ia3_l, (K if feedforward else N,), f"{which}, for weight of shape {(N, K)}")


def tensors(op, optional=(), **given):
    """Checks that each is a dense tensor; weight may be a `Frozen`, and what `optional` names may be None."""
    for name, t in given.items():
        if not isinstance(t, torch.Tensor):
            # By its name: torch.compile would guard on the class itself.
            if t is None and name in optional or name == "weight" and type(t).__name__ == "Frozen":
                continue
            raise TypeError(f"{op}: {name} is a {type(t).__name__}; give a tensor, such as torch.as_tensor({name})")
        if t.is_nested:
            raise TypeError(
                f"{op}: {name} is a nested tensor; give torch.nested.to_padded_tensor({name}, 0.0), or build an "
                "nn.TransformerEncoder with enable_nested_tensor=False"
            )
        dense(op, name, t)


def number(op, name, value) -> float:
    """value as a float; TypeError if it is no real number and no tensor of one."""
    of_one = isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex()
    if not of_one and not isinstance(value, NUMBERS):
        raise TypeError(f"{op}: {name}={value!r} must be a number")
    return float(value)


def generator(op, generator):
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"{op}: generator={generator!r} must be a torch.Generator, such as "
            "torch.Generator(x.device).manual_seed(0), or None for torch's own"
        )


def dropout_p(op, p):
    """Checks that p is in [0, 1) and that its 16-bit threshold keeps at least one value."""
    if not 0.0 <= p < 1.0 or round(p * 65536) > 65535:
        raise ValueError(f"{op}: dropout p={p} must be in [0, 1), at most 65535/65536")


def mask(op, mask, p, rows, columns):
    """Checks that mask is a packed mask of lora_shrink for these rows and columns and this p."""
    if mask.dtype != torch.uint8:
        raise TypeError(f"{op}: mask is {mask.dtype}; pass the packed uint8 mask that lora_shrink returned")
    if p > 0:
        shape(op, "mask", mask, (rows, (columns + 7) // 8), "one bit for each element of x, 8 to a byte")


def no_float64(first, *_):
    """Why the compiled kernels refuse these arguments, or None."""
    return "float64 runs on the kernels blas and reference only" if first.dtype == torch.float64 else None
