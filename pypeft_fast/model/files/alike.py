"""Whether a file's adapter computes what the adapter of the same name here does, but for its values."""

# Fields that act on the result without showing in a tensor's shape, of all methods.
FIELDS = (
    "r", "lora_alpha", "alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "use_qalora",
    "qalora_group_size", "alora_invocation_tokens", "scaling", "num_virtual_tokens", "placement", "activation",
)  # fmt: skip


def check_alike(path, adapter_name, mine, theirs) -> None:
    """ValueError if the config `theirs`, at path, has another method, rank or scaling than the adapter `mine`."""
    remedy = f"delete_adapter({adapter_name!r}) first, or load it under another name"
    if mine.peft_type != theirs.peft_type:
        raise ValueError(
            f"{path} holds an adapter of {_name(theirs)}, but {adapter_name!r} here is one of {_name(mine)}; {remedy}"
        )
    for field in FIELDS:
        here, there = getattr(mine, field, None), getattr(theirs, field, None)
        if field == "rank_pattern" and _name(mine) == "ADALORA":  # it changes while that trains; PEFT resizes
            continue
        if (here or None) != (there or None):
            raise ValueError(
                f"{path} has {field}={there!r}, unlike {here!r} of the adapter {adapter_name!r} that is here; {remedy}"
            )


def _name(config):
    return str(getattr(config.peft_type, "value", config.peft_type))
