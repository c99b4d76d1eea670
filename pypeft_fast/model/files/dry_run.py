"""Dry run: puts an adapter on a skeleton of the model, to learn which tensors PEFT would create.

PEFT itself injects, so that names, shapes and errors are its own for every method. Initialisations that compute on the
base's weights (PiSSA, OLoRA, LoftQ, ...) are switched off, new tensors lie on the meta device. Where that is impossible
or costs as much as loading itself, there is no dry run.
"""

import contextlib
import copy
import re
import warnings
from collections import OrderedDict, defaultdict
from dataclasses import dataclass

import torch
from torch import nn

# They decompose the base's weights, or load further adapters, while they are injected.
COSTLY = {"OSF", "FROD", "PSOFT", "ADAMSS", "XLORA"}


@dataclass
class Place:
    """Where a file's tensors go: `model` has the adapter, `tensors` are those that PEFT would write, by a file's names.

    model is a skeleton, or the user's own if it has the adapter already: to be read only.
    """

    model: nn.Module
    config: object
    adapter: str
    tensors: dict[str, torch.Tensor]

    def verdict(self, tensors: dict[str, torch.Tensor]) -> str | None:
        """Why PEFT would not load tensors of these names, shapes and dtypes here; None if it would, or cannot tell.

        PEFT's loading runs on empty tensors, so that its renamings of older files count.
        """
        from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
        from peft.utils import set_peft_model_state_dict

        with _untouched(self.model):
            trial = skeleton(self.model, is_meta=True)
            empty = {key: torch.empty_like(tensor, device="meta") for key, tensor in tensors.items()}
            try:
                result = set_peft_model_state_dict(trial, empty, adapter_name=self.adapter)
            except NotImplementedError:  # an operation that has no meta form: PEFT decides when it loads
                return None
            except (RuntimeError, KeyError, ValueError) as error:
                return str(error)
        for key in result.unexpected_keys:
            if key not in self.tensors and not is_needless(trial, key):
                return f"{key} has no place"
        shared = ("vblora_vector_bank", "prompt_encoder", ".tinylora_v.", ".unilora_theta_d.")  # listed once a layer
        prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(self.config.peft_type, "")
        for key in result.missing_keys:
            if prefix in key and f".{self.adapter}" in key and not any(name in key for name in shared):
                return f"{key} is missing"
        return None


def rehearse(model: nn.Module, config, adapter_name: str) -> Place | None:
    """The place of a new adapter on this model, be it bare or a PeftModel; None if there can be no dry run.

    That is so for methods that compute for long or load more files, and on shards. Raises what PEFT raises for this
    config. The model stays as it is, whatever happens.
    """
    is_costly = config.peft_type in COSTLY or getattr(config, "kasa_config", None) is not None
    if is_costly or getattr(model, "_tp_size", None) or any(hasattr(p, "ds_id") for p in model.parameters()):
        return None
    for low_cpu_mem_usage in (True, False):
        with contextlib.suppress(NotImplementedError):  # an initialisation without a meta form
            return _inject(model, config, adapter_name, low_cpu_mem_usage)
    return None


def _inject(model, config, adapter_name, low_cpu_mem_usage) -> Place:
    import peft

    config = copy.deepcopy(config)
    config.inference_mode = True
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = False
    with _untouched(model):
        clone = skeleton(model)
        if isinstance(model, peft.PeftModel):
            peft_class(type(clone)).add_adapter(clone, adapter_name, config, low_cpu_mem_usage=low_cpu_mem_usage)
        else:
            kind = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, peft.PeftModel)
            clone = kind(clone, config, adapter_name, low_cpu_mem_usage=low_cpu_mem_usage)
        return present(clone, adapter_name)


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
        raise ValueError(f"peft_type={config.peft_type} has no dry run on this {type(model).__name__}; use a copy")
    return {key: (tensor.shape, tensor.dtype) for key, tensor in place.tensors.items()}


def peft_class(kind: type) -> type:
    """The class of PEFT's that this one derives from, or is."""
    return next(base for base in kind.__mro__ if base.__module__.partition(".")[0] == "peft")


def is_needless(model, key) -> bool:
    """Whether this is a copy of a module in modules_to_save, which PEFT also writes where it writes biases or
    embeddings: the trained values again, or the frozen ones. Or MonteCLoRA's sampler, which an adapter has in training
    only."""
    from peft.utils.other import AuxiliaryTrainingWrapper

    if ".lora_monteclora_sampler." in key:
        return True
    name, *rest = re.split(r"\.(?:modules_to_save|original_module)\.", key)
    modules = dict(model.named_modules(remove_duplicate=False)) if rest else {}
    return isinstance(modules.get(name), AuxiliaryTrainingWrapper)


def skeleton(value, is_meta=False, memo=None):
    """A clone of a model whose modules, hooks, plain containers and configs are its own, each once, so that ties stay
    ties; anything else is shared, above all the tensors.

    is_meta: tensors become empty ones on the meta device, and what is loaded into them has no effect anywhere.
    """
    memo = {} if memo is None else memo
    kind = type(value)
    if id(value) in memo:
        return memo[id(value)]
    is_module = isinstance(value, nn.Module) and not isinstance(value, torch.jit.ScriptModule)  # that one lives in C++
    if is_module or hasattr(kind, "model_type"):  # a config of transformers, into which PeftModel writes
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
def _untouched(model: nn.Module):
    """Within the block PEFT may work on a skeleton, without a warning; afterwards the parameters that it shares with
    the model have the requires_grad that they had, and the generator of random numbers its state."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for parameter, trains in before:
                parameter.requires_grad_(trains)
