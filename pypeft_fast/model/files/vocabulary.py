"""Whether the vocabulary was resized: then the embeddings are saved in the adapter's file."""

import warnings


def resolve(option, model, configs):
    """The value of save_embedding_layers for PEFT: "auto" becomes True if the vocabulary size differs from the base's.

    PEFT asks the hub, and assumes an unchanged vocabulary if the hub cannot be reached. Here the size is read from the
    base's config, in a local folder or the hub's cache; the size may be in the config's text_config.
    """
    if option not in (True, False, "auto"):
        raise ValueError(f"save_embedding_layers={option!r}; give True, False or 'auto'")
    if option != "auto" or not any(_was_resized(model, config) for config in configs):
        return option
    warnings.warn(
        "the vocabulary size of this model differs from that of its base: the embeddings are saved with the adapter; "
        "pass save_embedding_layers=False to leave the embeddings out",
        stacklevel=3,
    )
    return True


def _was_resized(model, config) -> bool:
    from transformers import PreTrainedConfig

    base = config.base_model_name_or_path or getattr(model, "name_or_path", None)
    text = getattr(getattr(model, "config", None), "get_text_config", lambda: None)()
    if not base or getattr(text, "vocab_size", None) is None:
        return False
    try:
        values, _ = PreTrainedConfig.get_config_dict(base, revision=config.revision, local_files_only=True)
    except OSError:  # the base's config is not on this machine
        return False
    sizes = {part.get("vocab_size") for part in (values, values.get("text_config") or {})} - {None}
    return bool(sizes) and text.vocab_size not in sizes
