"""Whether the base's vocabulary was resized: then its embeddings belong into the adapter's file."""

import warnings


def resolve(option, model, configs):
    """save_embedding_layers for PEFT: "auto" becomes True where the vocabulary is another than the base's.

    PEFT asks the hub, and assumes the best where it cannot. Here the base's config answers, from its folder or the
    hub's cache, also one that holds the text model's within.
    """
    if option not in (True, False, "auto"):
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
    from transformers import PreTrainedConfig

    base = config.base_model_name_or_path or getattr(model, "name_or_path", None)
    text = getattr(getattr(model, "config", None), "get_text_config", lambda: None)()
    if not base or getattr(text, "vocab_size", None) is None:
        return False
    try:
        values, _ = PreTrainedConfig.get_config_dict(base, revision=config.revision, local_files_only=True)
    except OSError:  # it is not on this machine
        return False
    sizes = {part.get("vocab_size") for part in (values, values.get("text_config") or {})} - {None}
    return bool(sizes) and text.vocab_size not in sizes
