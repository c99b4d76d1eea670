"""Rules that say why a part of a layer cannot run on the fused ops: the text that reports and counters show, or None.

A fused op reads the weights of the layer's submodules instead of calling the submodules. So the op can replace the
calls only if no submodule has hooks, an instance forward, or a sharded, quantised or wrapped tensor. The rules take
facts as facts.py reads them; only `why_not_now` depends on the state of the process.
"""

import torch
from torch import nn
from torch._C import _are_functorch_transforms_active, _get_tracing_state
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.nn.modules import module as nn_module

from ...ops._check import ACTIVATIONS
from ...ops.philox import threshold

HALF = (torch.bfloat16, torch.float16)
_LINEAR = nn.Linear.forward


def why_not_tensor(facts, name, is_loaded=True) -> str | None:
    """is_loaded: False accepts a meta tensor, as low_cpu_mem_usage makes before the values are loaded."""
    if len(facts) == 1:
        return f"{name} is a {facts[0].__name__}"  # DTensor, a quantised weight, an offloaded one
    _, dtype, layout, device, _ = facts
    if dtype not in ACTIVATIONS:
        return f"{name} is {dtype}"
    if layout is not torch.strided or device.type == "meta" and is_loaded:
        return f"{name} is on meta or not strided"
    return None


def why_not_submodule(facts, name, expected) -> str | None:
    """A submodule of an adapter, such as lora_A: its class must be one of `expected`."""
    kind, is_hooked = facts
    if kind not in expected:
        return f"{name} is a {kind.__name__}"
    if is_hooked:
        return f"{name} has hooks or a forward of its own"
    return None


def why_not_dropout(facts, name) -> str | None:
    module, p, inplace, _ = facts
    reason = why_not_submodule(module, name, (nn.Dropout, nn.Identity))
    if reason is None and (inplace or threshold(p) > 65535):
        reason = f"{name} is in place or drops all: p={p}"
    return reason


def why_not_dtype(x, facts, name) -> str | None:
    """An adapter's parameter must have the dtype of the activations, or float32 for half-precision activations."""
    dtype, adapter = computing(x[1], x[-1]), facts[1]
    if adapter == dtype or adapter == torch.float32 and dtype in HALF:
        return None
    return f"{name} is {adapter} beside {dtype} activations"


def why_not_plain(x) -> str | None:
    """The input alone: a plain tensor that is not nested."""
    if len(x) == 1:
        return f"the input is a {x[0].__name__}"
    if x[4] is None:
        return "the input is nested"
    return None


def why_not_input(x, weight, K) -> str | None:
    """The input and the frozen weight: same device, size K, and the same dtype, as in nn.Linear."""
    reason = why_not_plain(x)
    if reason is not None:
        return reason
    _, dtype, layout, device, _, size, cast = x
    if size != K or device != weight[3] or layout is not torch.strided:
        return "the input does not fit the layer"
    if dtype != weight[1]:  # the weight's dtype has been checked by why_not_tensor
        computed = computing(dtype, cast)
        if computed != computing(weight[1], cast) or computed not in ACTIVATIONS:
            return f"the input is {dtype} and the base weight {weight[1]}"
    return None


def computing(dtype, cast) -> torch.dtype:
    """The dtype that nn.Linear would compute in: the tensor's own dtype, or autocast's."""
    return dtype if cast is None or dtype == torch.float64 or not dtype.is_floating_point else cast


def why_not_now(compiling=None) -> str | None:
    """Why no layer can be fused at this call; compiling: torch.compiler.is_compiling(), if the caller knows it."""
    if nn_module._has_any_global_hook():
        return "a global module hook is registered"
    if nn.Linear.forward is not _LINEAR:
        return "the forward of nn.Linear has been replaced"
    if is_compiling() if compiling is None else compiling:
        return None
    if _are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "a torch.func transform or forward-mode differentiation is active"
    if _get_tracing_state() is not None:
        return "torch.jit traces the call"
    return None


def why_not_called(args, kwargs, compiling) -> str | None:
    """Why a call with these further arguments cannot be fused now, whatever the layer is."""
    if args or kwargs and any(value is not None for value in kwargs.values()):
        return "the call has further arguments"
    return why_not_now(compiling)
