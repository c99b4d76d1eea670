"""Hot swap: a running adapter gets the values of a file, all in one call, while its tensors stay in place."""

import torch
from torch.nn.modules.module import _IncompatibleKeys

from .check import check_values
from .names import check_distinct, plain, plain_names
from .own_tensors import tensors_of

_WIDE = (torch.float32, torch.float64)


def swap(model, adapter_name: str, path: str, tensors, is_trainable: bool, options: dict) -> _IncompatibleKeys | None:
    """Copies the tensors of a file over those of the model's adapter; None, and no change, if PEFT has to do it.

    path: of the file, for messages. options: PEFT's loading options. The returned value is that of PEFT's load_adapter.

    ValueError, before any change, if a dtype or a value is not one of an adapter, or two tensors have one name.
    """
    config = model.peft_config[adapter_name]
    modules = dict(model.named_modules())
    found = tensors_of(modules, config, adapter_name)
    mine = found and {plain(name): tensor for name, tensor in found.items()}
    names = plain_names(tensors)
    check_distinct(path, names)
    if mine is None or options.get("key_mapping") or set(names.values()) != set(mine):
        return None
    if getattr(model, "hf_device_map", None) is not None:  # PEFT may dispatch the model again
        return None
    casts = options.get("autocast_adapter_dtype", True)  # to float32, after loading
    assigns = options.get("low_cpu_mem_usage", False)  # the file's tensors become the model's, with their dtype
    for key, name in names.items():
        here, there = mine[name], tensors[key]
        if type(here.data) is not torch.Tensor or here.is_meta or here.shape != there.shape:
            return None
        if (casts and here.dtype not in _WIDE) or (assigns and here.dtype != there.dtype):
            return None
    check_values(path, tensors, {key: mine[name] for key, name in names.items()})
    targets = [mine[name] for name in names.values()]
    with torch.no_grad():
        torch._foreach_copy_(targets, list(tensors.values()))  # one call: an interruption comes before or after it
    if not is_trainable and any(module.training for module in modules.values()):
        model.eval()
    return _IncompatibleKeys([], [])
