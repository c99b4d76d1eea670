"""The fields of a LoraConfig: which of them are plain, and whether their values are of the right type and range."""

import math
import re
import reprlib

# The fields that a config may have beside those that are None, False or empty: their values change no tensor's name.
PLAIN = {
    "peft_type", "task_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
    "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "use_rslora", "bias", "init_lora_weights",
    "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "runtime_config",
    "megatron_core", "loftq_config", "qalora_group_size",
}  # fmt: skip
# Initial values of LoRA for which PEFT leaves the base model's weights as they are, also when PEFT loads a file.
KEEP_BASE = ("gaussian", "eva", "orthogonal", "mica")
CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_NITER = r"pissa_niter_\d+"
_ANY_CASE = ("gaussian", "olora", "mica")  # PEFT compares these without regard to case
_SWITCHES = ("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out", "use_qalora")


def unusual(config) -> list[str]:
    """The names of the fields that are set and are not in PLAIN."""
    return [name for name, value in vars(config).items() if value and name not in PLAIN]


def keeps_base(start) -> bool:
    """Whether an adapter with this init_lora_weights leaves the base model's weights as they are."""
    return start is None or isinstance(start, bool) or (isinstance(start, str) and _lowered(start) in KEEP_BASE)


def check_lora_values(path, config) -> None:
    """ValueError, which names the path and the field, for a value of a LoraConfig of which PEFT complains only while it
    adds layers to the model, or not at all. Configs of other methods pass."""
    if config.peft_type != "LORA":
        return
    for name in ("r", "lora_alpha", "lora_dropout"):
        _check_number(path, name, getattr(config, name), _RULES[name])
    for name, rule in (("rank_pattern", _RULES["r"]), ("alpha_pattern", _RULES["lora_alpha"])):
        pattern = getattr(config, name)
        if not isinstance(pattern, dict):
            raise _fault(path, name, pattern, "must be an object of layers' names and numbers; {} if there are none")
        for key, value in pattern.items():
            _check_number(path, f"{name}[{key!r}]", value, rule)
            try:
                re.compile(rf"(.*\.)?({key})$")
            except re.error as error:
                raise _fault(path, name, key, f"is no regular expression: {error}; give a layer's name") from error
    for name in _SWITCHES:
        if not isinstance(getattr(config, name, None), (bool, type(None))):
            raise _fault(path, name, getattr(config, name), "must be true or false")
    _check_start(path, config)


def _check_start(path, config):
    start = config.init_lora_weights
    if not keeps_base(start):
        if not isinstance(start, str) or not (_lowered(start) in CHANGE_BASE or re.fullmatch(_NITER, start)):
            known = ", ".join((*KEEP_BASE, *CHANGE_BASE))
            raise _fault(path, "init_lora_weights", start, f"must be true, false, pissa_niter_NUMBER or one of {known}")
    odd = [r for r in (config.r, *config.rank_pattern.values()) if r % 2]
    if start == "orthogonal" and odd:
        raise _fault(path, "r", odd[0], 'must be even with init_lora_weights="orthogonal"; set init_lora_weights=true')


def _lowered(start) -> str:
    return start.lower() if start.lower() in _ANY_CASE else start


def _number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_RULES = {
    "r": (lambda v: _number(v) and isinstance(v, int) and v >= 1, "must be an integer of at least 1"),
    "lora_alpha": (_number, "must be a finite number"),
    "lora_dropout": (lambda v: _number(v) and 0 <= v <= 1, "must be a number from 0 to 1"),
}


def _check_number(path, name, value, rule):
    fits, words = rule
    if not fits(value):
        raise _fault(path, name, value, words)


def _fault(path, name, value, words) -> ValueError:
    return ValueError(f"{path}: {name}={reprlib.repr(value)} {words}; correct the field, or save the adapter again")
