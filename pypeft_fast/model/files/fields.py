"""adapter_config.json: its text, its fields, and what to do with those that this PEFT does not know."""

import inspect
import json
import reprlib
import warnings

DEPTH = 100  # of lists and objects in one another; PEFT's own configs have three


def parse(path, text: bytes) -> dict:
    """The JSON object. ValueError that names the file if it is none, is nested too deeply, or holds invalid text."""
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
        _check_value(path, name, value)
    return values


def known(path, values: dict) -> dict:
    """The fields that this PEFT has for the method. Others that are off or empty are passed over with one warning.

    ValueError: no peft_type or an unknown one; an unknown field with a value that may change what the adapter computes.
    """
    fields = inspect.signature(_config_class(path, values).__init__).parameters
    unknown = {name: value for name, value in values.items() if name not in fields and name != "runtime_config"}
    for name, value in unknown.items():
        if not _is_off(name, value, values):
            raise ValueError(
                f"{path}: this peft ({_version()}) does not know the field {name}={reprlib.repr(value)}, which may "
                "change what the adapter computes; upgrade peft, or remove the field if it does not matter"
            )
    if unknown:
        warnings.warn(
            f"{path}: fields of another peft that are off or empty are passed over: {', '.join(sorted(unknown))}",
            stacklevel=2,
        )
    return {name: value for name, value in values.items() if name in fields and name != "runtime_config"}


def to_config(path, values: dict):
    """PEFT's own config object of these fields. What PEFT raises names the file too."""
    kind = _config_class(path, values)
    try:
        return kind.from_peft_type(**kind.check_kwargs(**values))
    except (ValueError, TypeError) as error:
        if type(error) not in (ValueError, TypeError):
            raise
        raise type(error)(f"{path}: {error}") from error


def _config_class(path, values):
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = values.get("peft_type")
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        known = ", ".join(sorted(str(getattr(k, "value", k)) for k in PEFT_TYPE_TO_CONFIG_MAPPING))
        raise ValueError(
            f"{path}: peft_type={reprlib.repr(kind)} is none that this peft ({_version()}) has: {known}; upgrade peft, "
            "or give another adapter"
        )
    return PEFT_TYPE_TO_CONFIG_MAPPING[kind]


def _is_off(name, value, values) -> bool:
    """A field that says nothing: null, false, empty, or of a feature whose switch use_<feature> is off."""
    if value is None or value is False or (isinstance(value, (str, list, dict)) and not value):
        return True
    off = [key.removeprefix("use_") for key, switch in values.items() if key.startswith("use_") and not switch]
    return any(feature and (name == feature or name.startswith(f"{feature}_")) for feature in off)


def _check_value(path, name, value):
    """ValueError if there are lone surrogates in it, or more than DEPTH levels; without recursion."""
    level, depth = [name, value], 0
    while level:
        inner = []
        for item in level:
            if isinstance(item, str):
                try:
                    item.encode("utf-8")
                except UnicodeEncodeError:
                    raise ValueError(
                        f"{path}: {name!a} holds {reprlib.repr(ascii(item))}, which is no valid text; save the adapter "
                        "again"
                    ) from None
            elif isinstance(item, dict):
                inner += [*item, *item.values()]
            elif isinstance(item, list):
                inner += item
        level, depth = inner, depth + 1
        if depth > DEPTH:
            raise ValueError(f"{path}: {name} nests lists or objects more than {DEPTH} deep, which no adapter does")


def _version():
    import peft

    return peft.__version__
