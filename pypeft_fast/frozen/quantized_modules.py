"""Reads quantised weights of other libraries' modules by attribute, without importing the libraries."""

import functools

import torch

from .operand import Frozen


def is_linear_4bit(module) -> bool:
    return _reader(type(module)) is _four_bit


def is_linear_8bit(module) -> bool:
    return _reader(type(module)) is _eight_bit


def is_linear_fp8(module) -> bool:
    return _reader(type(module)) is _fp8


def _four_bit(module, why):
    parameters = module._parameters  # nn.Module.__getattr__ is slow
    weight = parameters["weight"] if "weight" in parameters else module.weight
    state = getattr(weight, "quant_state", None)
    if state is None:
        why("the weight is not quantised yet: bitsandbytes does it when the module is moved, module.to(device)")
    if getattr(state, "packing_format_for_cpu", False):
        why(
            "bitsandbytes has packed the weight for its own product on this CPU, as its layer does when it is called "
            "in eval mode without gradients, and that loses bits; load the model again and fuse it before that call"
        )
    codes = weight.data if weight.dtype == torch.uint8 else weight.data.view(torch.uint8)
    tensors = [codes, state.absmax]
    if state.nested:
        tensors += [state.state2.absmax, state.state2.code, state.offset]
    elif state.absmax.dtype != torch.float32:
        tensors[1] = state.absmax.float()
    return Frozen(state.quant_type, tensors, tuple(state.shape), module.compute_dtype or state.dtype)


def _eight_bit(module, why):
    weight = module.weight
    scale = module.state.SCB if module.state.SCB is not None else getattr(weight, "SCB", None)
    codes = module.state.CB if module.state.CB is not None else weight.data
    if scale is None or codes.dtype != torch.int8:
        why("the weight is not quantised yet: bitsandbytes does it when the module is moved, module.to(device)")
    bias = module.bias
    dtype = bias.dtype if bias is not None else torch.get_default_dtype()
    return Frozen("int8", (codes, scale), tuple(codes.shape), dtype)


def _fp8(module, why):
    scale, block_size = module.weight_scale_inv, module.block_size
    if block_size is not None and tuple(block_size) != (128, 128):
        why(f"its block_size is {tuple(block_size)}, expected (128, 128) or None")
    if scale.dtype != torch.float32 or module.weight.element_size() > 1:
        why(f"the weight is {module.weight.dtype} and its scale {scale.dtype}, expected float8_e4m3fn and float32")
    dtype = module.bias.dtype if module.bias is not None else torch.get_default_dtype()
    return Frozen("fp8", (module.weight.data, scale.data), tuple(module.weight.shape), dtype)


_READERS = {
    ("bitsandbytes", "Linear4bit"): _four_bit,
    ("bitsandbytes", "LinearNF4"): _four_bit,
    ("bitsandbytes", "LinearFP4"): _four_bit,
    ("bitsandbytes", "Linear8bitLt"): _eight_bit,
    ("transformers", "FP8Linear"): _fp8,
}


@functools.cache
def _reader(kind):
    """The function that reads modules of exactly this class, or None: a subclass may compute something else."""
    return _READERS.get((kind.__module__.partition(".")[0], kind.__name__))


def is_quantized(module) -> bool:
    """Whether `quantized` can read the module."""
    return _reader(type(module)) is not None


def quantized(module) -> Frozen | None:
    """The weight of bitsandbytes' Linear4bit and Linear8bitLt and of transformers' FP8Linear, shared; else None.

    Products are in the module's compute dtype, if the module has one. For int8 and fp8 the product is x W^T with the
    decoded weight, while the modules themselves also quantise x. TypeError that says why the weight cannot be read.
    """

    def why(reason):
        raise TypeError(f"frozen_of: {type(module).__qualname__}: {reason}")

    reader = _reader(type(module))
    return None if reader is None else reader(module, why)
