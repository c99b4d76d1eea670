"""Plain LoRA on nn.Linear layers of a base model, by far the most files: which tensors PEFT creates, without a dry run.

A dry run takes as long as PEFT's own loading. Its result is known beforehand if the config has no option that changes
more than the rank, and the file has exactly the tensors that follow from it. Everything else has a dry run.
"""

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.utils.other import get_pattern_key
from torch import nn

from .dry_run import Place
from .lora_fields import unusual
from .names import PREFIX, plain_names


def place_of_plain_lora(model: nn.Module, config, adapter_name: str, tensors, options: dict) -> Place | None:
    """The Place of an adapter on this base model, if the file's tensors fit it exactly; None: a dry run has to say.

    config: PEFT's config of the adapter. tensors: {name in the file: tensor}. options: PEFT's loading options.
    """
    if not _is_plain(model, config) or options.get("key_mapping"):
        return None
    expected, wanted, met = {}, config.target_modules, set()
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            return None
        if name and check_target_module_exists(config, name):
            if type(module) is not nn.Linear or type(module.weight.data) is not torch.Tensor:
                return None
            met |= {target for target in wanted if name == target or name.endswith(f".{target}")}
            rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), name), config.r)
            N, K = module.weight.shape
            for matrix, shape in (("A", (rank, K)), ("B", (N, rank))):
                expected[f"{PREFIX}{name}.lora_{matrix}.weight"] = torch.empty(shape, device="meta")
    names = plain_names(tensors)
    if set(names.values()) != set(expected) or met != set(wanted):
        return None
    if any(tensors[key].shape != expected[name].shape for key, name in names.items()):
        return None
    return Place(model, config, adapter_name, expected)


def _is_plain(model, config) -> bool:
    """Whether PEFT adds a pair of matrices to each target layer, does nothing else, and finds nothing to refuse."""
    if isinstance(model, peft.PeftModel) or not has_own_matrices_alone(config):
        return False
    if hasattr(model, "hf_device_map") or getattr(model, "_tp_size", None):
        return False
    if config.task_type not in (None, "CAUSAL_LM") or not isinstance(config.target_modules, (list, set)):
        return False
    if config.task_type == "CAUSAL_LM" and not hasattr(model, "prepare_inputs_for_generation"):
        return False
    return not config.fan_in_fan_out


def has_own_matrices_alone(config) -> bool:
    """Whether PEFT adds pairs of matrices for this config, and changes nothing else of the model."""
    if type(config) is not peft.LoraConfig or config.bias != "none" or not isinstance(config.init_lora_weights, bool):
        return False
    return not unusual(config)
