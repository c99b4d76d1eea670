"""What PEFT would create: an adapter put on a skeleton of the model, whose tensors nobody computes.

PEFT itself injects, so that names, shapes and errors are its own for every method. Initialisations that compute on the
base's weights (PiSSA, OLoRA, LoftQ, ...) are switched off, new tensors lie on the meta device. Where that is impossible
or costs as much as loading itself, there is no dry run: see `rehearsable`.
"""

import copy
import warnings
from dataclasses import dataclass

import torch
from torch import nn

from .skeleton import skeleton, to_meta, untouched

# They decompose the base's weights, or load further adapters, while they are injected.
COSTLY = {"OSF", "FROD", "PSOFT", "ADAMSS", "XLORA"}


@dataclass
class Place:
    """Where a file's tensors go: `model` has the adapter, `tensors` are those that PEFT would write, by a file's names.

    model is a skeleton, or the user's own model if it has the adapter already; it is to be read only.
    """

    model: nn.Module
    config: object
    adapter: str
    tensors: dict[str, torch.Tensor]

    def verdict(self, tensors: dict[str, torch.Tensor]) -> str | None:
        """Why PEFT would not load tensors of these names, shapes and dtypes here; None if it would, or cannot tell.

        PEFT's loading runs on empty tensors, so that its renamings of older files count.
        """
        from peft.utils import set_peft_model_state_dict

        with untouched(self.model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = skeleton(self.model)
            to_meta(trial)
            empty = {key: torch.empty_like(tensor, device="meta") for key, tensor in tensors.items()}
            try:
                result = set_peft_model_state_dict(trial, empty, adapter_name=self.adapter)
            except NotImplementedError:  # an operation that has no meta form: PEFT decides when it loads
                return None
            except (RuntimeError, KeyError, ValueError) as error:
                return str(error)
        lost = [key for key in result.unexpected_keys if key not in self.tensors and not is_needless(trial, key)]
        return f"{lost[0]} has no place" if lost else _missing(self.config, self.adapter, result.missing_keys)


def rehearsable(model, config) -> bool:
    """Whether a dry run can be made: not for methods that compute for long or load more files, nor on shards."""
    costly = config.peft_type in COSTLY or getattr(config, "kasa_config", None) is not None
    sharded = getattr(model, "_tp_size", None) or any(hasattr(p, "ds_id") for p in model.parameters())
    return not (costly or sharded)


def rehearse(model: nn.Module, config, adapter_name: str) -> Place | None:
    """The place of a new adapter on this model, be it bare or a PeftModel; None if there can be no dry run.

    Raises what PEFT raises for this config. The model stays as it is, whatever happens.
    """
    if not rehearsable(model, config):
        return None
    try:
        return _inject(model, config, adapter_name, low_cpu_mem_usage=True)
    except NotImplementedError:  # an initialisation without a meta form
        pass
    try:
        return _inject(model, config, adapter_name, low_cpu_mem_usage=False)
    except (NotImplementedError, RuntimeError):  # nor can it be made twice: PEFT decides when it loads
        return None


def present(model: nn.Module, adapter_name: str) -> Place:
    """The place of an adapter that this PeftModel has."""
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    return Place(model, model.peft_config[adapter_name], adapter_name, tensors)


def expected_tensors(model: nn.Module, config, adapter_name="default") -> dict[str, tuple[torch.Size, torch.dtype]]:
    """{name in the file: (shape, dtype)} of what PEFT would write of this adapter, were it on the model.

    Raises what PEFT raises for this config, and ValueError for a method that has no dry run. The model stays as it is.
    """
    place = rehearse(model, config, adapter_name)
    if place is None:
        raise ValueError(
            f"peft_type={config.peft_type} has no dry run on this {type(model).__name__}; put it on a copy"
        )
    return {key: (tensor.shape, tensor.dtype) for key, tensor in place.tensors.items()}


def peft_class(kind: type) -> type:
    """The class of PEFT's that this one derives from, or is."""
    return next(base for base in kind.__mro__ if base.__module__.partition(".")[0] == "peft")


def is_needless(model, key) -> bool:
    """Whether this is a copy of a module in modules_to_save, which PEFT also writes where it writes biases or
    embeddings: the trained values again, or the frozen ones."""
    from peft.utils.other import AuxiliaryTrainingWrapper

    for middle in (".modules_to_save.", ".original_module."):
        name, found, _ = key.partition(middle)
        if found and isinstance(_submodule(model, name), AuxiliaryTrainingWrapper):
            return True
    return False


def _inject(model, config, adapter_name, low_cpu_mem_usage) -> Place:
    import peft

    config = copy.deepcopy(config)
    config.inference_mode = True
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = False
    with untouched(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clone = skeleton(model)
        if isinstance(model, peft.PeftModel):
            peft_class(type(clone)).add_adapter(clone, adapter_name, config, low_cpu_mem_usage=low_cpu_mem_usage)
        else:
            kind = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, peft.PeftModel)
            clone = kind(clone, config, adapter_name, low_cpu_mem_usage=low_cpu_mem_usage)
        return present(clone, adapter_name)


def _missing(config, adapter, keys) -> str | None:
    """The first tensor of the adapter that would not be loaded. Those that layers share are listed once a layer."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    shared = ("vblora_vector_bank", "prompt_encoder", ".tinylora_v.", ".unilora_theta_d.")
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(config.peft_type, "")
    for key in keys:
        if prefix in key and f".{adapter}" in key and not any(name in key for name in shared):
            return f"{key} is missing"
    return None


def _submodule(model, name):
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
