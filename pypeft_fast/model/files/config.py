"""adapter_config.json: its fields, those that this PEFT does not know, and whether two adapters are alike."""

import inspect
import json
import reprlib
import warnings

DEPTH = 100  # of lists and objects in one another; PEFT's own configs have three
# Fields that act on the result without showing in a tensor's shape, of all methods.
FIELDS = (
    "r", "lora_alpha", "alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "use_qalora",
    "qalora_group_size", "alora_invocation_tokens", "scaling", "num_virtual_tokens", "placement", "activation",
)  # fmt: skip


def read_config(path, text: bytes) -> tuple:
    """(PEFT's config, {field: value} of those in the file that this PEFT knows).

    Unknown fields that are off or empty are passed over with one warning.

    ValueError names the file: it is no JSON object, is nested too deeply or holds invalid text; its peft_type is
    missing or unknown; an unknown field may change what the adapter computes; PEFT refuses a value.
    """
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    values = _parse(path, text)
    kind, this = values.get("peft_type"), f"this peft ({peft.__version__})"
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        known = ", ".join(sorted(kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING))
        raise ValueError(
            f"{path}: peft_type={reprlib.repr(kind)} is none that {this} has: {known}; upgrade peft, or give another "
            "adapter"
        )
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    values.pop("runtime_config", None)  # what held while it was saved
    fields = inspect.signature(config_class).parameters
    unknown = [name for name in values if name not in fields]
    for name in unknown:
        if not _is_off(name, values):
            raise ValueError(
                f"{path}: {this} does not know the field {name}={reprlib.repr(values[name])}, which may change what "
                "the adapter computes; upgrade peft, or remove the field if it does not matter"
            )
    if unknown:
        warnings.warn(
            f"{path}: fields that are off or empty are passed over: {', '.join(sorted(unknown))}", stacklevel=2
        )
    values = {name: value for name, value in values.items() if name in fields}
    try:
        return config_class(**config_class.check_kwargs(**values)), values
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def check_alike(path, adapter_name, mine, theirs) -> None:
    """ValueError if the config `theirs`, at path, has another method, rank or scaling than the adapter `mine`."""
    remedy = f"delete_adapter({adapter_name!r}) first, or load it under another name"
    if mine.peft_type != theirs.peft_type:
        raise ValueError(
            f"{path} holds an adapter of {theirs.peft_type.value}, but {adapter_name!r} here is one of "
            f"{mine.peft_type.value}; {remedy}"
        )
    for field in FIELDS:
        here, there = getattr(mine, field, None), getattr(theirs, field, None)
        if field == "rank_pattern" and mine.peft_type == "ADALORA":  # it changes while that trains; PEFT resizes
            continue
        if (here or None) != (there or None):
            raise ValueError(
                f"{path} has {field}={there!r}, unlike {here!r} of the adapter {adapter_name!r} that is here; {remedy}"
            )


def _parse(path, text) -> dict:
    if not text.strip():
        raise ValueError(f"{path} is empty; save the adapter again")
    try:
        values = json.loads(text.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"{path} nests lists or objects more than {DEPTH} deep, which no adapter does") from None
    except ValueError as error:  # of JSON, of UTF-8, or an integer of thousands of digits
        raise ValueError(f"{path} is not JSON that can be read: {error}; save the adapter again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a JSON object is expected, not {type(values).__name__}; give an adapter's config")
    for name, value in values.items():
        _check_value(path, name, [name, value], DEPTH)
    return values


def _check_value(path, name, value, depth):
    """ValueError if there are lone surrogates in it, or more levels than depth."""
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        text = reprlib.repr(ascii(value))
        raise ValueError(f"{path}: {name!a} holds {text}, which is no valid text; save the adapter again")
    if isinstance(value, (list, dict)):
        if not depth:
            raise ValueError(f"{path}: {name} nests lists or objects more than {DEPTH} deep, which no adapter does")
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            _check_value(path, name, item, depth - 1)


def _is_off(name, values) -> bool:
    """Whether a field has no effect: null, false, empty, or an option of a feature whose use_<feature> is off."""
    value = values[name]
    if value is None or value is False or value in ("", [], {}):
        return True
    off = [key.removeprefix("use_") for key, switch in values.items() if key.startswith("use_") and not switch]
    return any(feature and (name == feature or name.startswith(f"{feature}_")) for feature in off)
