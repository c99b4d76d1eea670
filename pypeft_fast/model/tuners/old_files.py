"""Converts the tensor names in files of earlier versions of this package, which did not use PEFT's names."""

import re


def current_keys(peft_type, tensors) -> dict:
    """{name: tensor} of a file with today's names; a tensor that has today's name already keeps it.

    peft_type: a PeftType or its name; files of other methods than BITFIT and BOTTLENECK are not changed. A module that
    a BitFit file saves whole keeps its names; such a module has a weight as well as a bias.
    """
    if peft_type == "BITFIT":
        return {_bitfit(key, tensors): tensor for key, tensor in tensors.items()}
    if peft_type == "BOTTLENECK":
        old = re.compile(r"\.bottleneck\.(down|up|norm)\.(weight|bias)$")
        return {old.sub(r".bottleneck_adapter_\1.\2", key): tensor for key, tensor in tensors.items()}
    return dict(tensors)


def _bitfit(key, tensors) -> str:
    module, _, parameter = key.rpartition(".")
    return f"{module}.bitfit_bias" if parameter == "bias" and f"{module}.weight" not in tensors else key
