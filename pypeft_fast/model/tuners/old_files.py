"""Names of tensors in files of earlier versions of this package, whose layers were not PEFT's."""

import re


def current_keys(peft_type, tensors) -> dict:
    """The tensors of a file, {name: tensor}, under today's names; what has such a name already keeps it.

    peft_type: a PeftType or its name; other methods' files are left as they are. Modules that a BitFit adapter saved
    whole keep their names too: these have a weight beside the bias.
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
