"""Dry run: adds an adapter to a skeleton of the model, to learn which tensors PEFT would create.

PEFT itself adds the adapter, so names, shapes and errors are PEFT's for every method. Initialisations that compute on
the base weights (PiSSA, OLoRA, LoftQ, ...) are switched off, and new tensors are on the meta device. There is no dry
run for a method where this is impossible or as expensive as loading the adapter.
"""

import contextlib
import copy
import re
import warnings
from collections import OrderedDict, defaultdict
from dataclasses import dataclass

import torch
from torch import nn

# Methods that decompose the base weights, or load further adapters, while PEFT adds the adapter.
COSTLY = {"OSF", "FROD", "PSOFT", "ADAMSS", "XLORA"}


@dataclass
class Place:
    """Where a file's tensors go: `model` has the adapter, `tensors` are {name in a file: tensor} that PEFT would write.

    model: a skeleton, or the user's model if that has the adapter already. Callers only read from it.
    """

    model: nn.Module
    config: object
    adapter: str
    tensors: dict[str, torch.Tensor]

    def verdict(self, tensors: dict[str, torch.Tensor]) -> str | None:
        """Why PEFT would not load tensors of these names, shapes and dtypes; None if PEFT would, or if it is unknown.

        PEFT's own loading runs on empty tensors, so PEFT's renaming of older files is included.
        """
        from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
        from peft.utils import set_peft_model_state_dict

        with _restored_afterwards(self.model):
            trial = skeleton(self.model, is_meta=True)
            empty = {key: torch.empty_like(tensor, device="meta") for key, tensor in tensors.items()}
            try:
                result = set_peft_model_state_dict(trial, empty, adapter_name=self.adapter)
            except NotImplementedError:  # an operation without a meta kernel: unknown until PEFT loads the file
                return None
            except (RuntimeError, KeyError, ValueError) as error:
                return str(error)
        for key in result.unexpected_keys:
            if key not in self.tensors and not can_ignore(trial, key):
                return f"{key} has no place"
        # One tensor that all layers share is listed as missing once for each layer.
        shared = ("vblora_vector_bank", "prompt_encoder", ".tinylora_v.", ".unilora_theta_d.")
        prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(self.config.peft_type, "")
        for key in result.missing_keys:
            if prefix in key and f".{self.adapter}" in key and not any(name in key for name in shared):
                return f"{key} is missing"
        return None


def rehearse(model: nn.Module, config, adapter_name: str, wraps: bool = False) -> Place | None:
    """The Place of a new adapter on this model, a base model or a PeftModel; None if there is no dry run.

    wraps: a PeftModel too is wrapped in a new one, as from_pretrained does, instead of getting a further adapter.

    There is none for methods in COSTLY, and none for a model that tensor parallelism or DeepSpeed has sharded. Raises
    what PEFT raises for this config. The model does not change, with or without an error.
    """
    is_costly = config.peft_type in COSTLY or getattr(config, "kasa_config", None) is not None
    if is_costly or is_sharded(model):
        return None
    for low_cpu_mem_usage in (True, False):
        with contextlib.suppress(NotImplementedError):  # an initialisation without a meta kernel
            return _inject(model, config, adapter_name, wraps, low_cpu_mem_usage)
    return None


def is_sharded(model: nn.Module) -> bool:
    """Whether tensor parallelism or DeepSpeed keeps parts of the model's tensors in other processes."""
    return bool(getattr(model, "_tp_size", None)) or any(hasattr(p, "ds_id") for p in model.parameters())


def _inject(model, config, adapter_name, wraps, low_cpu_mem_usage) -> Place:
    import peft

    config = copy.deepcopy(config)
    config.inference_mode = True
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = False
    with _restored_afterwards(model):
        clone = skeleton(model)
        if isinstance(model, peft.PeftModel) and not wraps:
            peft_class(type(clone)).add_adapter(clone, adapter_name, config, low_cpu_mem_usage=low_cpu_mem_usage)
        else:
            kind = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, peft.PeftModel)
            clone = kind(clone, config, adapter_name, low_cpu_mem_usage=low_cpu_mem_usage)
        return present(clone, adapter_name)


def present(model: nn.Module, adapter_name: str) -> Place:
    """The Place of an adapter that this PeftModel has already."""
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    return Place(model, model.peft_config[adapter_name], adapter_name, tensors)


def expected_tensors(model: nn.Module, config, adapter_name="default") -> dict[str, tuple[torch.Size, torch.dtype]]:
    """{name in the file: (shape, dtype)} of the tensors that PEFT would write for an adapter of this config.

    Raises what PEFT raises for this config, and ValueError for a method without a dry run. The model does not change.
    """
    place = rehearse(model, config, adapter_name)
    if place is None:
        raise ValueError(
            f"peft_type={config.peft_type} has no dry run on this {type(model).__name__}; add the adapter to a copy of "
            "the model instead"
        )
    return {key: (tensor.shape, tensor.dtype) for key, tensor in place.tensors.items()}


def peft_class(kind: type) -> type:
    """The first class of PEFT in the method resolution order of `kind`: `kind` itself, or a base class."""
    return next(base for base in kind.__mro__ if base.__module__.partition(".")[0] == "peft")


def can_ignore(model, key) -> bool:
    """Whether loading can ignore the tensor `key` of a file.

    This holds for a second copy, trained or frozen, of a module in modules_to_save, which PEFT writes together with
    biases or embeddings; and for MonteCLoRA's sampler, which exists only during training.
    """
    from peft.utils.other import AuxiliaryTrainingWrapper

    if ".lora_monteclora_sampler." in key:
        return True
    name, *rest = re.split(r"\.(?:modules_to_save|original_module)\.", key)
    modules = dict(model.named_modules(remove_duplicate=False)) if rest else {}
    return isinstance(modules.get(name), AuxiliaryTrainingWrapper)


def skeleton(value, is_meta=False, memo=None):
    """A clone of a model with its own modules, hooks, plain containers and configs; all else is shared, also tensors.

    Each object is cloned once, so tied weights stay tied. is_meta: each tensor is replaced by an empty tensor on the
    meta device, so that loading into the clone does not change the model.
    """
    memo = {} if memo is None else memo
    kind = type(value)
    if id(value) in memo:
        return memo[id(value)]
    # A ScriptModule's state is in C++. model_type: a config of transformers, which PeftModel changes.
    is_module = isinstance(value, nn.Module) and not isinstance(value, torch.jit.ScriptModule)
    if is_module or hasattr(kind, "model_type"):
        clone = memo[id(value)] = object.__new__(kind)
        clone.__dict__.update((name, skeleton(item, is_meta, memo)) for name, item in value.__dict__.items())
    elif kind in (dict, OrderedDict, defaultdict):
        clone = memo[id(value)] = copy.copy(value)
        clone.update((key, skeleton(item, is_meta, memo)) for key, item in value.items())
    elif kind is list:
        clone = memo[id(value)] = []
        clone.extend(skeleton(item, is_meta, memo) for item in value)
    elif kind in (tuple, set):
        clone = memo[id(value)] = kind(skeleton(item, is_meta, memo) for item in value)
    elif is_meta and isinstance(value, torch.Tensor):
        clone = torch.empty(value.shape, dtype=value.dtype, device="meta")
        clone = memo[id(value)] = nn.Parameter(clone, False) if isinstance(value, nn.Parameter) else clone
    else:
        clone = value
    return clone


@contextlib.contextmanager
def _restored_afterwards(model: nn.Module):
    """Hides warnings in the block, then restores requires_grad of the model's parameters and the state of the random
    number generator: PEFT changes both while it works on a skeleton."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for parameter, trains in before:
                parameter.requires_grad_(trains)
