"""Whether a file's tensors fit the model, before anything is changed: names, shapes, dtypes, values."""

import contextlib
import re

import torch

from .dry_run import Place, is_needless
from .tensors import FLOATS, INTEGERS, File, plain, plain_names


def check(file: File, place: Place | None, key_mapping=None, ignore_mismatched_sizes=False) -> dict[str, str]:
    """{name in the file: name for PEFT} of the tensors to load.

    place: where they go; None if that cannot be known, and then dtypes and values alone are checked.
    key_mapping: PEFT's renamings {regular expression: replacement}, which it applies itself when it loads.

    ValueError names the first tensor that does not fit.
    """
    names = plain_names(file.held)
    if place is None:
        for key in names:
            file.check_dtype(key, None)
            file.check_finite(key, None)
        return names
    own = _own_names(place)
    names = {key: own.get(name, name) for key, name in names.items()}
    mapped = {key: _mapped(name, key_mapping) for key, name in names.items()}
    beside = _beside(place, [name for name in mapped.values() if name not in place.tensors])
    for key, name in mapped.items():
        if name in beside and beside[name][0] != name:
            names[key] = mapped[key] = beside[name][0]
    known = place.tensors | dict(beside.values())
    _check_names(file, place, mapped, known, ignore_mismatched_sizes)
    for key, name in mapped.items():
        reference = known.get(name)
        file.check_dtype(key, None if reference is None else reference.dtype)
        file.check_finite(key, reference)
    return names


def _check_names(file, place, mapped, known, ignore_mismatched_sizes):
    """ValueError unless names and shapes are those of the model, or PEFT renames them so that they are."""
    fault = _first_fault(file, place, mapped, known, ignore_mismatched_sizes)
    if fault is None and not (place.config.is_prompt_learning and not place.config.inference_mode):
        return
    dtypes = FLOATS | INTEGERS
    empty = {
        name: torch.empty(file.held[key].shape, dtype=dtypes.get(file.held[key].dtype, torch.float32), device="meta")
        for key, name in mapped.items()
    }
    verdict = place.verdict(empty)
    if verdict is not None and (fault or not ignore_mismatched_sizes):
        raise ValueError(f"{file.path} {fault or f'does not fit this model: {verdict}'}")


def _first_fault(file, place, mapped, known, ignore_mismatched_sizes) -> str | None:
    held = {name: file.held[key] for key, name in mapped.items()}
    for name, tensor in known.items():
        if name in held and held[name].shape != tuple(tensor.shape) and not ignore_mismatched_sizes:
            return (
                f"does not fit: {name} has shape {held[name].shape}, this model and config expect "
                f"{tuple(tensor.shape)}; is it an adapter of this base model?"
            )
    missing = sorted(set(place.tensors) - set(held))
    if missing:
        return f"has no {missing[0]}, which the config and this model ask for; is it an adapter of this base model?"
    extra = sorted(name for name in set(held) - set(known) if not is_needless(place.model, name))
    if extra:
        return f"has {extra[0]}, which this model and config have no place for; is it an adapter of this base model?"
    return None


def _own_names(place) -> dict[str, str]:
    """{plain name: the model's own} where the model has compiled blocks."""
    own = {plain(name): name for name in place.tensors if "_orig_mod." in name}
    for name, _ in place.model.named_parameters(remove_duplicate=False):
        if "_orig_mod." in name:
            own.setdefault(plain(name), name)
    return own


def _mapped(name, key_mapping) -> str:
    """The name after PEFT's key_mapping: the first pattern that is found in it counts, behind PEFT's own prefix."""
    prefix = next((p for p in ("base_model.model.", "base_model.") if name.startswith(p)), "")
    for pattern, replacement in (key_mapping or {}).items():
        renamed, count = re.subn(pattern, replacement, name.removeprefix(prefix))
        if count:
            return prefix + renamed
    return name


def _beside(place, names) -> dict[str, tuple[str, torch.Tensor]]:
    """{name: (the model's own name, tensor)} of those that are of input or output embeddings.

    PEFT writes these too where the vocabulary was resized or a config targets one by name; there the model has the
    layer's weight as `base_layer.weight`.
    """
    if not names:
        return {}
    embeddings = []
    for side in ("input", "output"):
        with contextlib.suppress(
            NotImplementedError, AttributeError, TypeError
        ):  # models of images and sound have none
            embeddings.append(getattr(place.model, f"get_{side}_embeddings")())
    embeddings += [layer.base_layer for layer in embeddings if hasattr(layer, "base_layer")]
    found = {}
    for module_name, module in place.model.named_modules(remove_duplicate=False):
        if not any(module is layer for layer in embeddings):
            continue
        for key, tensor in module.named_parameters(recurse=False):
            own = f"{module_name}.{key}"
            for name in (own, own.replace(".base_layer.", "."), f"{module_name}.base_layer.{key}"):
                if name in names:
                    found[name] = (own, tensor)
    return found
