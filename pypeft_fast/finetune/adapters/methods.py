"""The methods that a run can train: the config, the default learning rate and the options of each method."""

from dataclasses import dataclass

from ..errors import UserError
from ..text import quoted

TASK = "CAUSAL_LM"


@dataclass(frozen=True)
class Method:
    learning_rate: float
    options: tuple[str, ...]  # the fields of Settings that only some methods have
    by_rows: bool = True  # whether a batch may hold rows of several such adapters


METHODS = {
    "lora": Method(5e-4, ("rank", "alpha", "dropout", "target_modules")),
    "dora": Method(5e-4, ("rank", "alpha", "dropout", "target_modules"), by_rows=False),
    "ia3": Method(5e-3, ("target_modules",)),
    "bitfit": Method(1e-3, ("target_modules",)),
    "bottleneck": Method(5e-4, ("reduction_factor", "dropout")),
    "prompt": Method(2e-2, ("virtual_tokens",), by_rows=False),
    "prefix": Method(5e-3, ("virtual_tokens",), by_rows=False),
}
DEFAULTS = {"rank": 16, "alpha": 32, "dropout": 0.05, "reduction_factor": 16, "virtual_tokens": 20}
BY_ROWS = tuple(name for name, its in METHODS.items() if its.by_rows)
# Methods with target_modules="all-linear" by default; with the other methods, PEFT or the method's config chooses.
ALL_LINEAR = ("lora", "dora")


def options_of(method: str, given: dict) -> dict:
    """The options given for a method, None replaced by the default; UserError for an option that the method lacks."""
    has = METHODS[method].options
    for name, value in given.items():
        if value is not None and name not in has:
            able = ", ".join(other for other, its in METHODS.items() if name in its.options)
            raise UserError(f"`{name}` does not go with `method` {method}; it is for {able}")
    usual = DEFAULTS | {"target_modules": "all-linear" if method in ALL_LINEAR else None}
    return {name: usual[name] if given[name] is None and name in has else given[name] for name in given}


def check_by_rows(method: str) -> None:
    """UserError for a method of which one batch cannot train several adapters."""
    if method not in BY_ROWS:
        raise UserError(
            f"`method` {method} trains one adapter in a run, since a batch cannot hold rows of several; give one "
            f"`data`, or one of the methods {', '.join(BY_ROWS)}"
        )


def method_of(config: dict, folder) -> str:
    """The method of an adapter_config.json. UserError for a method that a run cannot train."""
    kinds = {"LORA": "dora" if config.get("use_dora") else "lora", "IA3": "ia3", "BITFIT": "bitfit"}
    kinds |= {"BOTTLENECK": "bottleneck", "PROMPT_TUNING": "prompt", "PREFIX_TUNING": "prefix"}
    kind = config.get("peft_type")
    if kind not in kinds:
        raise UserError(f"`adapter` {folder} is of the method {quoted(kind)}; trained are {', '.join(METHODS)}")
    return kinds[kind]


def method_config(library, settings, task=TASK):
    """The config for a Settings, of the classes in `library`, the module pypeft_fast or peft.

    Only pypeft_fast has BitFit and bottleneck adapters.
    """
    of = settings
    if of.method in ("lora", "dora"):
        return library.LoraConfig(
            r=of.rank,
            lora_alpha=of.alpha,
            lora_dropout=of.dropout,
            target_modules=of.target_modules,
            use_dora=of.method == "dora",
            bias="none",
            task_type=task,
        )
    if of.method == "ia3":
        feedforward = None if of.target_modules is None else []
        return library.IA3Config(target_modules=of.target_modules, feedforward_modules=feedforward, task_type=task)
    if of.method == "bitfit":
        return library.BitFitConfig(target_modules=of.target_modules, add_missing=True, task_type=task)
    if of.method == "bottleneck":
        return library.BottleneckConfig(reduction_factor=of.reduction_factor, dropout=of.dropout, task_type=task)
    kind = library.PromptTuningConfig if of.method == "prompt" else library.PrefixTuningConfig
    start = dict(prompt_tuning_init="SAMPLE_VOCAB") if of.method == "prompt" else {}
    return kind(num_virtual_tokens=of.virtual_tokens, task_type=task, **start)
