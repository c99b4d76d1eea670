"""Whether the base's vocabulary was resized: then its embeddings belong into the adapter's file."""

import json
import os
import warnings


def resolve(option, model, configs):
    """save_embedding_layers for PEFT: "auto" becomes True where the vocabulary is another than the base's.

    PEFT itself asks the hub, and assumes the best where it cannot: here the base's config in the hub's cache answers,
    which is there if the base came from the hub, and configs that hold the text model's within.
    """
    if not isinstance(option, bool) and option != "auto":
        raise ValueError(f"save_embedding_layers={option!r} must be True, False or 'auto'")
    if option != "auto" or not any(_was_resized(model, config) for config in configs):
        return option
    warnings.warn(
        "the vocabulary of this model is another than its base's: the embeddings are saved with the adapter; "
        "save_embedding_layers=False leaves them out",
        stacklevel=3,
    )
    return True


def _was_resized(model, config) -> bool:
    text = getattr(getattr(model, "config", None), "get_text_config", lambda: None)()
    path = _base_config(
        getattr(config, "base_model_name_or_path", None) or _path_of(model), getattr(config, "revision", None)
    )
    if path is None or getattr(text, "vocab_size", None) is None:
        return False
    with open(path, encoding="utf-8") as file:
        values = json.load(file)
    sizes = [part.get("vocab_size") for part in (values, values.get("text_config")) if isinstance(part, dict)]
    return any(size is not None for size in sizes) and text.vocab_size not in sizes


def _base_config(base, revision) -> str | None:
    """The config.json of the base model: in its folder, or in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if not base:
        return None
    local = os.path.join(base, "config.json")
    if os.path.isfile(local):
        return local
    try:
        found = try_to_load_from_cache(base, "config.json", revision=revision)
    except HFValidationError:  # it is no hub id
        return None
    return found if isinstance(found, str) else None


def _path_of(model) -> str | None:
    return getattr(model, "name_or_path", None)
