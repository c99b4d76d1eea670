"""Checks, before the model changes, that a file's tensors fit the model: names, shapes, dtypes, values."""

import contextlib
import math
import re

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .dry_run import Place, can_ignore
from .names import check_distinct, plain, plain_names

FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_SUMS = {dtype: torch.promote_types(dtype, torch.float32) for dtype in FLOATS}
MAY_BE_INFINITE = ".vblora_logits"  # VB-LoRA writes minus infinity as the logit of a vector that was not chosen
OLD_FILES = ("BITFIT", "BOTTLENECK")  # methods whose tensors had other names in earlier versions of this package


def read_tensors(path, pinned) -> dict[str, torch.Tensor]:
    """{name: tensor} of the safetensors file at `pinned`.

    ValueError names `path` if the file is empty, truncated or corrupt, or its header is too large.
    """
    try:
        return load_file(pinned)
    except SafetensorError as error:
        raise damaged(path, error) from error


def damaged(path, error) -> ValueError:
    return ValueError(f"{path} is truncated or corrupt ({error}); copy or save the adapter again")


def check(path, tensors, config, place: Place | None, options: dict) -> dict[str, str]:
    """{name in the file: name for PEFT} of the tensors to load.

    place: where the tensors go in the model; without a place, only dtypes and values are checked.
    options: PEFT's loading options; key_mapping {regular expression: replacement} and ignore_mismatched_sizes are read.

    ValueError names the first tensor that does not fit, or two that have one name in the model.
    """
    names = plain_names(tensors)
    if config.peft_type in OLD_FILES:
        from pypeft_fast.model.tuners.old_files import current_keys

        today = current_keys(config.peft_type, {name: key for key, name in names.items()})
        names = {key: name for name, key in today.items()}
    names = {key: _mapped(name, options.get("key_mapping")) for key, name in names.items()}
    known = {}
    if place is not None:
        embeddings = _embeddings(place.model)
        known = {name: tensor for name, tensor in embeddings.values()} | place.tensors
        own = [name for name, _ in place.model.named_parameters(remove_duplicate=False)]
        own = {plain(name): name for name in (*own, *place.tensors) if "_orig_mod." in name}
        own = {alias: name for alias, (name, _) in embeddings.items() if alias not in place.tensors} | own
        names = {key: own.get(name, name) for key, name in names.items()}
        check_distinct(path, names)
        held = {name: tensors[key] for key, name in names.items()}
        fault = _fault(held, place, known, options.get("ignore_mismatched_sizes"))
        trains_prompt = place.config.is_prompt_learning and not place.config.inference_mode
        if fault or (trains_prompt and not options.get("ignore_mismatched_sizes")):
            verdict = place.verdict(held)  # PEFT may rename the tensors so that the new names fit
            if verdict is not None:
                fault = fault or f"does not fit this model: {verdict}"
                raise ValueError(f"{path} {fault}; is it an adapter of this base model?")
    check_values(path, tensors, {key: known.get(name) for key, name in names.items()}, place and place.model)
    return names


def _fault(held, place, known, ignore_mismatched_sizes) -> str | None:
    """The first name or shape in which the file differs from the model, or None."""
    for name, tensor in known.items():
        if name in held and held[name].shape != tensor.shape and not ignore_mismatched_sizes:
            found, expected = tuple(held[name].shape), tuple(tensor.shape)
            return f"does not fit: {name} has shape {found}, this model and config expect {expected}"
    if missing := sorted(set(place.tensors) - set(held)):
        return f"has no {missing[0]}, which this config needs on this model"
    if extra := sorted(name for name in set(held) - set(known) if not can_ignore(place.model, name)):
        return f"has {extra[0]}, which this model and config have no place for"
    return None


def check_values(path, tensors, references, model=None) -> None:
    """ValueError if a tensor's dtype is not one of an adapter, or a value is NaN or infinite, whatever the model holds;
    but a buffer, such as a mask, may hold infinities where the model's own buffer holds the same ones.

    references: {name in the file: the model's tensor, or None}. model: of the references; None if no buffer counts.
    """
    for key, tensor in tensors.items():
        reference = references[key]
        needs_float = reference is not None and reference.is_floating_point()
        if tensor.dtype not in FLOATS and (needs_float or tensor.is_floating_point() or tensor.is_complex()):
            why = "this model has a floating-point tensor there" if needs_float else "no adapter has this dtype"
            raise ValueError(
                f"{path}: {key} has dtype {tensor.dtype}, but {why}; save it as float32, float16 or bfloat16"
            )
        # The sum is finite only if all values are: one pass over the file's bytes, without a mask of them.
        if tensor.is_floating_point() and not math.isfinite(tensor.sum(dtype=_SUMS[tensor.dtype])):
            _check_finite(path, key, tensor, reference, model)


def _check_finite(path, key, tensor, reference, model):
    bad = ~torch.isfinite(tensor)
    if not bad.any() or (MAY_BE_INFINITE in key and not tensor.isnan().any()):
        return
    if _is_buffer(reference, model) and reference.shape == tensor.shape:
        if torch.equal(tensor[bad], reference[bad].to(tensor)):  # NaN is not equal to NaN
            return
    first = bad.nonzero()[0].tolist()
    raise ValueError(
        f"{path}: {key}: {int(bad.sum())} of {tensor.numel()} values are NaN or infinite, the first is "
        f"{tensor[tuple(first)].item()} at {first}; load an earlier checkpoint"
    )


def _is_buffer(tensor, model) -> bool:
    """Whether a tensor is, or shares the memory of, one of the model's buffers."""
    if tensor is None or model is None or tensor.is_meta:
        return False
    return any(buffer.data_ptr() == tensor.data_ptr() for buffer in model.buffers() if not buffer.is_meta)


def _mapped(name, key_mapping) -> str:
    """The name after PEFT's key_mapping: the first pattern that matches is replaced; PEFT's own prefix stays."""
    prefix = next((p for p in ("base_model.model.", "base_model.") if name.startswith(p)), "")
    for pattern, replacement in (key_mapping or {}).items():
        renamed, count = re.subn(pattern, replacement, name.removeprefix(prefix))
        if count:
            return prefix + renamed
    return name


def _embeddings(model) -> dict[str, tuple[str, torch.Tensor]]:
    """{name in a file: (name in the model, tensor)} of the input and output embeddings.

    PEFT also writes the embeddings if the vocabulary was resized or a config targets an embedding by name. In the
    second case the embedding's weight is named `base_layer.weight` in the model.
    """
    layers = []
    for side in ("input", "output"):
        with contextlib.suppress(NotImplementedError, AttributeError, TypeError):  # image and audio models have none
            layers.append(getattr(model, f"get_{side}_embeddings")())
    layers += [layer.base_layer for layer in layers if hasattr(layer, "base_layer")]
    found = {}
    for module_name, module in model.named_modules(remove_duplicate=False):
        if any(module is layer for layer in layers):
            for key, tensor in module.named_parameters(recurse=False):
                own = f"{module_name}.{key}"
                found |= {own: (own, tensor), own.replace(".base_layer.", "."): (own, tensor)}
    return found
