"""The methods by the peft_type that names them in a file: each has a config and a module that puts it on a model."""

import dataclasses

from . import bitfit, bottleneck, ia3, lora, prefix, prompt
from .bitfit_config import BitFitConfig
from .bottleneck_config import BottleneckConfig
from .config import PeftConfig, PeftType
from .ia3_config import IA3Config
from .lora_config import LoraConfig
from .prompt_config import PrefixTuningConfig, PromptTuningConfig

CONFIGS = {
    config.KIND: config
    for config in (LoraConfig, IA3Config, BitFitConfig, BottleneckConfig, PromptTuningConfig, PrefixTuningConfig)
}
METHODS = {
    PeftType.LORA: lora,
    PeftType.IA3: ia3,
    PeftType.BITFIT: bitfit,
    PeftType.BOTTLENECK: bottleneck,
    PeftType.PROMPT_TUNING: prompt,
    PeftType.PREFIX_TUNING: prefix,
}


def method_of(config: PeftConfig):
    """The module with plan, complete, shapes, add and tensors of a config's method; lora.py tells what they are."""
    return METHODS[config.KIND]


def get_peft_config(config_dict: dict) -> PeftConfig:
    """The config of a dict such as adapter_config.json holds; "peft_type" is required.

    Raises ValueError that names an unknown peft_type or field.
    """
    values = dict(config_dict)
    kind = values.get("peft_type")
    if kind not in list(CONFIGS):
        raise ValueError(f"peft_type={kind!r} is not supported; this version has {', '.join(t.value for t in CONFIGS)}")
    config = CONFIGS[kind]
    known = {f.name for f in dataclasses.fields(config)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(
            f"unknown field {unknown[0]}={values[unknown[0]]!r}; {config.__name__} has {', '.join(sorted(known))}"
        )
    return config(**values)
