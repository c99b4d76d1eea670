"""PEFT's class with safe files, small adapters, and functions that change the files in their folders."""

import json

import peft
import torch
from safetensors.torch import load_file, save_file

from pypeft_fast.model.files import SafeFiles
from tests.model.zoo import build, liven

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class PeftModel(SafeFiles, peft.PeftModel):
    """PEFT's class with SafeFiles, without the rest of this package."""

    @classmethod
    def _adopt(cls, model):
        ours = {peft.PeftModel: PeftModel, peft.PeftModelForCausalLM: PeftModelForCausalLM}
        model.__class__ = ours.get(type(model), type(model))
        return model


class PeftModelForCausalLM(SafeFiles, peft.PeftModelForCausalLM):
    """The class of a task with SafeFiles."""


def adapted(kind="llama", seed=1, adapter="default", library=PeftModel, base=None, **options):
    """A small model with a LoRA adapter with random values."""
    settings = dict(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]) | options
    torch.manual_seed(seed)
    model = library(build(kind) if base is None else base, peft.LoraConfig(**settings), adapter)
    liven(model, seed, adapter)
    return model.eval()


def edit(folder, **changes):
    """Changes values in the config file; the value `...` removes a field."""
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in (values | changes).items() if v is not ...}))


def rewrite(folder, change):
    """Rewrites the weights file. change(tensors) alters the dictionary in place, or returns another dictionary."""
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors) or tensors, folder / WEIGHTS)


def lora_A(tensors):
    return next(k for k in tensors if "q_proj.lora_A" in k)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def state(model):
    """Everything that a failed load must not change: identities of modules, attributes, tensors, requires_grad."""
    modules = [(name, id(m), type(m), _sizes(m)) for name, m in model.named_modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    tensors = [(id(p), p.requires_grad, p.data_ptr(), p.detach().clone()) for p in model.parameters()]
    config = getattr(model, "config", None)
    return modules, hooks, tensors, None if config is None else config.to_dict(), torch.get_rng_state()


def _sizes(module):
    """{attribute of the module: its number of entries if it is a container, otherwise its type}."""
    return {k: len(v) if isinstance(v, (dict, list, set)) else type(v) for k, v in module.__dict__.items()}


def assert_untouched(model, before):
    after = state(model)
    assert after[:2] == before[:2] and after[3] == before[3] and torch.equal(after[4], before[4])
    for new, old in zip(after[2], before[2], strict=True):
        assert new[:3] == old[:3] and torch.equal(new[3], old[3])
