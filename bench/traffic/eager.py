"""The traffic of other implementations, counted on fake tensors: the ATen ops are those of a real run, and counting is
fast for any shape.

The tensors are fake CPU tensors. Two differences from a GPU are corrected: on a GPU dropout is one kernel with a byte
mask; and autocast is the CPU's here, which has the same rules for these ops as the GPU's.
"""

import contextlib
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .count import Counting, Step, counted

BF16, F32 = torch.bfloat16, torch.float32
SCALING, P = 2.0, 0.05


def _dropout(x, p=0.5, training=True, inplace=False):
    return torch.ops.aten.native_dropout(x, p, training)[0]


def _autocast(on):
    return torch.autocast("cpu", BF16) if on else contextlib.nullcontext()


def _linear(shape):
    linear = nn.Linear(shape.K, shape.N, bias=False, dtype=BF16)
    linear.weight.requires_grad_(False)
    return linear


def _step(shape, module, adapter=BF16, autocast=False, call=lambda module, x: module(x)) -> Step:
    """Counts call(module, x) -> y and all gradients. The module's parameters are replaced by fake ones; the trained
    parameters get the dtype `adapter`."""
    with FakeTensorMode(), mock.patch.object(F, "dropout", _dropout):
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                fake = torch.empty(parameter.shape, dtype=adapter if parameter.requires_grad else BF16)
                setattr(part, name, nn.Parameter(fake, parameter.requires_grad))
        x, dY = torch.empty(shape.M, shape.K, dtype=BF16, requires_grad=True), torch.empty(shape.M, shape.N, dtype=BF16)
        parameters = list(module.parameters())

        def forward():
            with _autocast(autocast):
                return call(module, x)

        return counted(Counting(shape), forward, (x, *(p for p in parameters if p.requires_grad)), parameters, dY)


def frozen(shape):
    """The frozen layer alone: the two base GEMMs."""
    with torch.device("meta"):
        linear = _linear(shape)
    return _step(shape, linear)


def _peft(shape, config, adapter, autocast):
    from peft import get_peft_model

    with torch.device("meta"):
        model = get_peft_model(nn.Sequential(_linear(shape)), config)
    return _step(shape, model.base_model.model[0].train(), adapter, autocast)


def peft_lora(shape, adapter=BF16, autocast=False, p=P):
    """PEFT's own layer. PEFT's default for a bf16 model is float32 adapters."""
    from peft import LoraConfig

    config = LoraConfig(r=shape.r, lora_alpha=SCALING * shape.r, lora_dropout=p, target_modules=["0"])
    return _peft(shape, config, adapter, autocast)


def peft_ia3(shape, feedforward, adapter=BF16, autocast=False):
    from peft import IA3Config

    config = IA3Config(target_modules=["0"], feedforward_modules=["0"] if feedforward else [])
    return _peft(shape, config, adapter, autocast)


class _Addmm(torch.autograd.Function):
    """The low-rank term is accumulated into the vendor's GEMM; only x is saved, and s and dS are recomputed.

    This is the order of operations of Unsloth's LoRA_W (github.com/unslothai/unsloth, unsloth/kernels/fast_lora.py).
    """

    @staticmethod
    def forward(ctx, x, weight, A, B):
        ctx.save_for_backward(x, weight, A, B)
        return (x @ weight.t()).addmm_(x @ A.t(), B.t(), alpha=SCALING)

    @staticmethod
    def backward(ctx, dY):
        x, weight, A, B = ctx.saved_tensors
        dA = torch.addmm(A, (dY @ B).t(), x, beta=0, alpha=SCALING)
        dB = torch.addmm(B, dY.t(), x @ A.t(), beta=0, alpha=SCALING)
        dX = (dY @ weight).addmm_(dY @ B, A, alpha=SCALING)
        return dX, None, dA, dB


class _Adapted(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.base = _linear(shape)
        self.A = nn.Parameter(torch.empty(shape.r, shape.K, dtype=BF16))
        self.B = nn.Parameter(torch.empty(shape.N, shape.r, dtype=BF16))


def addmm(shape):
    with torch.device("meta"):
        module = _Adapted(shape)
    return _step(shape, module, call=lambda m, x: _Addmm.apply(x, m.base.weight, m.A, m.B))
