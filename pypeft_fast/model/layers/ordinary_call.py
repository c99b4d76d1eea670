"""The call that nearly every call is, recognised in a few microseconds: one plain LoRA adapter, nothing in its way.

While decoding, a small layer's arithmetic takes ten microseconds, and asking for each reason of can_fuse.py as long. So
this is one flat function that reads dictionaries; what it does not recognise is asked there. It may say no to a call
that can be fused, and never yes to one that can not.
"""

import torch
from torch import nn

from ...ops._check import ACTIVATIONS
from .can_fuse import HALF, STRIDED, hooked, why_not_now

Linear, Parameter, Tensor, Dropout, Identity = nn.Linear, nn.Parameter, torch.Tensor, nn.Dropout, nn.Identity
FLOAT = torch.float32
_FEW = 0.9  # a dropout up to here leaves elements to keep whatever the bits of its threshold


def ordinary_call(layer, x):
    """(weight, bias, lora_A, lora_B, scaling, dropout_p) of the only active adapter, or None: not recognised."""
    name = layer._active_adapter
    if type(name) is not str:
        if len(name) != 1:
            return None
        name = name[0]
    modules = layer._modules
    module_A = modules["lora_A"]._modules.get(name)
    if module_A is None or layer._disable_adapters or layer.merged_adapters or name in layer.lora_variant:
        return None

    base, module_B = modules["base_layer"], modules["lora_B"]._modules[name]
    dropout = modules["lora_dropout"]._modules[name]
    if type(base) is not Linear or type(module_A) is not Linear or type(module_B) is not Linear:
        return None
    if hooked(base) or hooked(module_A) or hooked(module_B) or hooked(dropout):
        return None

    parameters, of_A, of_B = base._parameters, module_A._parameters, module_B._parameters
    weight, bias = parameters.get("weight"), parameters.get("bias", ...)  # absent: FSDP has put plain tensors there
    A, B = of_A.get("weight"), of_B.get("weight")
    if type(weight) is not Parameter or type(A) is not Parameter or type(B) is not Parameter or type(x) is not Tensor:
        return None
    if of_A.get("bias", ...) is not None or of_B.get("bias", ...) is not None:
        return None

    dtype, device = x.dtype, x.device
    if weight.dtype is not dtype or dtype not in ACTIVATIONS or weight.device != device or x.is_meta or x.is_nested:
        return None
    if bias is not None and (
        type(bias) is not Parameter or bias.dtype is not dtype or bias.device != device or bias.dim() != 1
    ):
        return None
    dtype_A = A.dtype
    if dtype_A is not dtype and (dtype_A is not FLOAT or dtype not in HALF or not layer.cast_input_dtype_enabled):
        return None
    if B.dtype is not dtype_A or A.device != device or B.device != device:
        return None
    if x.layout is not STRIDED or weight.layout is not STRIDED or A.layout is not STRIDED or B.layout is not STRIDED:
        return None
    if x.dim() < 1 or x.size(-1) != layer.in_features or weight.dim() != 2 or A.dim() != 2 or B.dim() != 2:
        return None

    scaling, p = layer.scaling[name], 0.0
    if type(dropout) is Dropout:
        if dropout.inplace or dropout.p > _FEW:
            return None
        if dropout.training:
            p = dropout.p
    elif type(dropout) is not Identity:
        return None
    if A.size(0) != B.size(1) or type(scaling) is not float and type(scaling) is not int:
        return None
    if torch._C._is_any_autocast_enabled() or why_not_now() is not None:
        return None
    return weight, bias, A, B, scaling, p
