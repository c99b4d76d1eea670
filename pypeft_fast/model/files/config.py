"""Reads adapter_config.json, checks its fields against the installed PEFT, and compares two adapters' configs."""

import inspect
import json
import reprlib
import warnings

from .lora_fields import check_lora_values

DEPTH = 100  # the deepest nesting of lists and objects that is accepted; PEFT's own configs have three levels
# The fields, of all methods, that change an adapter's output, and may not change the shape of a tensor.
FIELDS = (
    "r", "lora_alpha", "alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "use_qalora",
    "qalora_group_size", "alora_invocation_tokens", "scaling", "num_virtual_tokens", "placement", "activation",
)  # fmt: skip


def read_config(path, text: bytes) -> tuple:
    """(PEFT's config, {field: value} of the file's fields that the installed PEFT knows).

    An unknown field that is off or empty is ignored, with one warning for all such fields.

    ValueError names the file if the file is no JSON object, is nested too deeply or holds invalid text; if peft_type is
    missing or unknown; if an unknown field may change the adapter's output; or if a value is of another type or range
    than the field's.
    """
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    values = _parse(path, text)
    kind, this = values.get("peft_type"), f"this peft ({peft.__version__})"
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        known = ", ".join(sorted(kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING))
        raise ValueError(
            f"{path}: peft_type={reprlib.repr(kind)} is not a method of {this}, which has {known}; upgrade peft, or "
            "load another adapter"
        )
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    values.pop("runtime_config", None)  # options of the process that saved the adapter
    fields = inspect.signature(config_class).parameters
    unknown = [name for name in values if name not in fields]
    for name in unknown:
        if not _is_off(name, values):
            raise ValueError(
                f"{path}: {this} does not know the field {name}={reprlib.repr(values[name])}, which may change the "
                "adapter's output; upgrade peft, or remove the field if it does not matter"
            )
    if unknown:
        warnings.warn(
            f"{path}: unknown fields that are off or empty are ignored: {', '.join(sorted(unknown))}", stacklevel=2
        )
    values = {name: value for name, value in values.items() if name in fields}
    try:
        config = config_class(**config_class.check_kwargs(**values))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    check_lora_values(path, config)
    return config, values


def check_alike(path, adapter_name, mine, theirs) -> None:
    """ValueError if the config `theirs`, read from path, differs from the config `mine` in method, rank or scaling."""
    remedy = f"call delete_adapter({adapter_name!r}) first, or load the file under another name"
    if mine.peft_type != theirs.peft_type:
        raise ValueError(
            f"{path}: peft_type={theirs.peft_type.value}, but the model's adapter {adapter_name!r} has "
            f"peft_type={mine.peft_type.value}; {remedy}"
        )
    for field in FIELDS:
        here, there = getattr(mine, field, None), getattr(theirs, field, None)
        if field == "rank_pattern" and mine.peft_type == "ADALORA":  # training changes rank_pattern; PEFT resizes
            continue
        if (here or None) != (there or None):
            raise ValueError(
                f"{path}: {field}={there!r}, but the model's adapter {adapter_name!r} has {field}={here!r}; {remedy}"
            )


def _parse(path, text) -> dict:
    if not text.strip():
        raise ValueError(f"{path} is empty; save the adapter again")
    try:
        values = json.loads(text.decode("utf-8"))
    except RecursionError:
        raise ValueError(
            f"{path} nests lists or objects more than {DEPTH} levels deep; give an adapter's config"
        ) from None
    except ValueError as error:  # invalid JSON, invalid UTF-8, or an integer of thousands of digits
        raise ValueError(f"{path} is not valid JSON: {error}; save the adapter again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a JSON object is expected, not {type(values).__name__}; give an adapter's config")
    for name, value in values.items():
        _check_value(path, name, [name, value], DEPTH)
    return values


def _check_value(path, name, value, depth):
    """ValueError if a text in `value` has lone surrogates, or lists and objects are nested more than `depth` levels."""
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        text = reprlib.repr(ascii(value))
        raise ValueError(f"{path}: {name!a} holds {text}, which is not valid Unicode; save the adapter again")
    if isinstance(value, (list, dict)):
        if not depth:
            raise ValueError(
                f"{path}: {name} nests lists or objects more than {DEPTH} levels deep; give an adapter's config"
            )
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            _check_value(path, name, item, depth - 1)


def _is_off(name, values) -> bool:
    """Whether a field has no effect: null, false, empty, or an option of a feature whose use_<feature> is off."""
    value = values[name]
    if value is None or value is False or value in ("", [], {}):
        return True
    off = [key.removeprefix("use_") for key, switch in values.items() if key.startswith("use_") and not switch]
    return any(feature and (name == feature or name.startswith(f"{feature}_")) for feature in off)
