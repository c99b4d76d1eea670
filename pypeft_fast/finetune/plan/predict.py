"""The peak memory of a run whose model is loaded, before its first step, from shapes alone."""

import copy
import dataclasses

import torch

import pypeft_fast

from ..errors import as_user_error
from ..library_errors import LIBRARY_ERRORS
from .live import DEPTH, activations
from .make import base_of
from .memory import MASTER, Memory, memory
from .skeleton import read_skeleton

# The tensors that an optimizer keeps for each trained tensor, of its size.
KEPT = {"adamw_torch_fused": 2, "adamw_torch": 2, "adagrad": 1, "rmsprop": 1, "adafactor": 0, "sgd": 0}


def predict(model, settings, longest: int, process: int, adapters: int = 1) -> Memory:
    """The memory of a step of this PeftModel. longest: tokens of the longest row. process: the resident set before the
    model was loaded. adapters: how many train at once.

    UserError if the step cannot be simulated, such as for target modules that the first two blocks do not have.
    """
    skeleton = read_skeleton(settings.model)
    on_gpu = torch.cuda.is_available()
    with as_user_error("its step cannot be simulated", LIBRARY_ERRORS):
        base = base_of(skeleton, skeleton.model(settings.dtype), settings.quantize, settings.dtype, on_gpu)
        config = copy.deepcopy(next(iter(model.peft_config.values())))
        names = [str(number) for number in range(adapters)]
        few = pypeft_fast.get_peft_model(skeleton.model(settings.dtype, DEPTH), config, names[0])
        for name in names[1:]:
            few.add_adapter(name, config)
        if adapters > 1:
            few.base_model.set_adapter(names)
        shape = settings.batch_size * adapters, longest
        live = activations(few.to("meta"), shape, True, settings.gradient_checkpointing, names)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = memory(base, trained, live, skeleton.depth, process, on_gpu)
    return dataclasses.replace(found, optimizer=KEPT[settings.optimizer] * MASTER * trained)
