"""`quantize`: a base model with linear layers in 4 or 8 bits; and the format with which an adapter was trained."""

import importlib.util
from pathlib import Path

from .adapters.files import CONFIG, object_in, settings_of
from .errors import UserError, as_user_error

QUANTIZE = ("nf4", "int8")
DENSE = "dense"  # the format without `quantize`


def check_quantize(quantize: str | None) -> None:
    """UserError if a format is given and bitsandbytes is not installed. Imports nothing."""
    if quantize is not None and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"`quantize` {quantize} needs bitsandbytes, not installed here; run: pip install bitsandbytes")


def check_method(method: str, quantize: str | None) -> None:
    """UserError if adapters of the method cannot run over a base model in this format."""
    if method == "dora" and quantize == "int8":
        raise UserError(
            "`method` dora does not run over `quantize` int8: PEFT's DoRA loses the scales of bitsandbytes' int8 "
            "layers on a CPU; take `quantize` nf4, or `method` lora"
        )


def check_adapter(folder: Path, quantize: str | None) -> None:
    """UserError if the adapter in this folder cannot run over a base model in this format."""
    if object_in(folder / CONFIG)[0].get("use_dora"):
        check_method("dora", quantize)


def quantized(model, quantize: str | None, name: str):
    """The base model, changed in place to linear layers in this format; not changed if `quantize` is None.

    name: the model's name for messages. UserError if bitsandbytes is missing or the model has no layer to quantise.
    """
    if quantize is None:
        return model
    check_quantize(quantize)
    import pypeft_fast

    with as_user_error(f"`model` {name} cannot be quantised", (ValueError, TypeError, ImportError)):
        pypeft_fast.quantize_model(model, quantize)
    leave_file(model)
    return model


def leave_file(model) -> None:
    """Copies the tensors that are not quantised, such as embeddings: as long as one of them is a part of the mapped
    file, all pages of the file that were read stay in this process."""
    import torch

    copies = {}  # of each storage, so that tensors which share one still do
    for tensor in (*model.parameters(), *model.buffers()):
        if (
            type(tensor) in (torch.Tensor, torch.nn.Parameter)
            and tensor.layout is torch.strided
            and tensor.device.type == "cpu"
        ):
            its = tensor.untyped_storage()
            if its.data_ptr() not in copies:
                copies[its.data_ptr()] = its.clone()
            place = copies[its.data_ptr()], tensor.storage_offset(), tensor.shape, tensor.stride()
            tensor.data = torch.empty(0, dtype=tensor.dtype).set_(*place)


def trained_over(folder: Path) -> str | None:
    """The format of the base model with which the adapter in this folder was trained, or "dense"; None if unknown."""
    settings = settings_of(folder)
    if "quantize" not in settings:
        return None
    found = DENSE if settings["quantize"] is None else settings["quantize"]
    return found if found in (DENSE, *QUANTIZE) else None
