"""Whether a PEFT layer can run on the fused ops: every reason why not, as the text that reports and counters show.

A fused op reads the weights of the layer's submodules itself instead of calling them. So it may stand in for them only
where each is exactly what it seems: no hooks, no forward of its own, no sharded, quantised or wrapped tensor.
"""

import torch
from torch import nn
from torch.nn.modules import module as nn_module

from ...frozen.modules import is_plain
from ...ops._check import ACTIVATIONS
from ...ops.philox import threshold

FUSED = "fused"  # in a layer's counter: calls that the ops ran; the other keys are reasons why PEFT's forward ran
HALF = (torch.bfloat16, torch.float16)
STRIDED = torch.strided
_LINEAR = nn.Linear.forward
_OURS = __package__.rpartition(".")[0] + "."  # pypeft_fast.model.


# All of this runs at every call of every layer, and while decoding a token that is much of the time of a small layer.
# So what nn.Module would search for in Python, in __getattr__, is read from the dictionaries in which it lies.
def hooked(module) -> bool:
    state = module.__dict__
    return bool(
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
        and not _is_own(module, state["forward"])
    )


def _is_own(module, forward) -> bool:
    """Whether it is the method of the module's class after all: accelerate leaves it so when its hooks are removed.

    So it is with that of a fused class which the module has no longer: it calls the one of the class.
    """
    function = getattr(forward, "__func__", None)
    if function is None or forward.__self__ is not module:
        return False
    return function is type(module).forward or function.__module__.startswith(_OURS)


def set_class(module, kind) -> None:
    """What accelerate leaves as the module's own forward would go on standing before that of its class: it goes too."""
    state = vars(module)
    if "forward" in state and _is_own(module, state["forward"]):
        del module.forward
    module.__class__ = kind


def take_back(layer, kind) -> None:
    """Gives a fused layer PEFT's class; adapters that are merged are merged by PEFT's own arithmetic then."""
    names = list(layer.merged_adapters)
    if names:
        layer.unmerge()
    set_class(layer, kind)
    del layer._fused_calls
    if names:
        layer.merge(adapter_names=names)


def why_not_forward(layer) -> str | None:
    """Why calls of the layer do not reach the forward of its class, if they do not: accelerate's hooks stand there."""
    state = vars(layer)
    if "forward" in state and not _is_own(layer, state["forward"]):
        return "the layer has a forward of its own"
    return None


def tensor_of(module, name):
    """module.weight or module.bias: a parameter, or the plain tensor that FSDP and pruning put in its place."""
    parameters = module._parameters
    return parameters[name] if name in parameters else getattr(module, name)


def entry(layer, holder, name):
    """layer.holder[name], of a ModuleDict."""
    return layer._modules[holder]._modules[name]


def why_not_parameter(tensor, name, is_loaded=True) -> str | None:
    if type(tensor) is not nn.Parameter and type(tensor) is not torch.Tensor:
        return f"{name} is a {type(tensor).__name__}"  # DTensor, a quantised weight, an offloaded one
    if tensor.dtype not in ACTIVATIONS:
        return f"{name} is {tensor.dtype}"
    if tensor.layout is not STRIDED or tensor.is_meta and is_loaded:
        return f"{name} is on meta or not strided"
    return None


def why_not_base(base) -> str | None:
    """The frozen layer: a plain linear one, with plain parameters of one dtype."""
    if not is_plain(base):
        return f"the base layer is a {type(base).__name__}"
    if hooked(base):
        return "the base layer has hooks or a forward of its own"
    weight, bias = tensor_of(base, "weight"), tensor_of(base, "bias")
    reason = why_not_parameter(weight, "the base weight")
    if reason is None and bias is not None:
        reason = why_not_parameter(bias, "the base bias")
        if reason is None and bias.dtype != weight.dtype:
            reason = f"the base bias is {bias.dtype} and its weight {weight.dtype}"
    if reason is None and (weight.dim() != 2 or bias is not None and bias.dim() != 1):
        reason = "the base weight has no two dimensions: it is partitioned"
    return reason


def why_not_submodule(module, name, expected) -> str | None:
    """lora_A, lora_B and lora_dropout of one adapter."""
    if type(module) not in expected:
        return f"{name} is a {type(module).__name__}"
    if hooked(module):
        return f"{name} has hooks or a forward of its own"
    return None


def why_not_dropout(dropout) -> str | None:
    reason = why_not_submodule(dropout, "lora_dropout", (nn.Dropout, nn.Identity))
    if reason is None and type(dropout) is nn.Dropout and (dropout.inplace or dropout.p > 0.9 and drops_all(dropout.p)):
        reason = f"lora_dropout is in place or drops all: p={dropout.p}"
    return reason


def drops_all(p) -> bool:
    return threshold(p) > 65535


def why_not_dtype(dtype, adapter, name) -> str | None:
    """An adapter's parameter beside activations of this dtype."""
    if adapter == dtype or adapter == torch.float32 and dtype in HALF:
        return None
    return f"{name} is {adapter} beside {dtype} activations"


def why_not_input(x, base, K) -> str | None:
    """The input and the transforms around the call; x and the weight meet in one dtype, as nn.Linear demands."""
    if type(x) is not torch.Tensor and type(x) is not nn.Parameter:
        return f"the input is a {type(x).__name__}"
    if x.is_nested:
        return "the input is nested"
    weight = tensor_of(base, "weight")
    if x.dim() < 1 or x.size(-1) != K or x.device != weight.device or x.layout is not STRIDED:
        return "the input does not fit the layer"
    if x.dtype != weight.dtype:  # the weight's is accepted already
        dtype = computing_dtype(x)
        if dtype != computing_dtype(weight) or dtype not in ACTIVATIONS:
            return f"the input is {x.dtype} and the base weight {weight.dtype}"
    return why_not_now()


def why_not_now() -> str | None:
    if nn_module._has_any_global_hook():
        return "a global module hook is registered"
    if nn.Linear.forward is not _LINEAR:
        return "the forward of nn.Linear has been replaced"
    if torch.compiler.is_compiling():
        return None
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return "a torch.func transform or forward-mode differentiation is active"
    if torch._C._get_tracing_state() is not None:
        return "torch.jit traces the call"
    return None


def computing_dtype(tensor) -> torch.dtype:
    """The dtype that nn.Linear would compute in: the tensor's own, or autocast's."""
    dtype = tensor.dtype
    if torch._C._is_any_autocast_enabled() and dtype != torch.float64 and dtype.is_floating_point:
        device = tensor.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
    return dtype
