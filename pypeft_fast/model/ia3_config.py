"""IA3Config: PEFT's fields, names, order and defaults."""

from dataclasses import dataclass

from . import validate
from .config import PeftConfig, PeftType


@dataclass
class IA3Config(PeftConfig):
    """How to put (IA)^3 (arXiv:2205.05638) on a model: a learned vector rescales the outputs of a layer or its inputs.

    Args:
        target_modules: names (a module matches by its whole name or by what follows a dot), a regular expression
            for the whole name, or "all-linear"; None: the usual ones for the model's architecture.
        exclude_modules: what to leave out of these.
        feedforward_modules: those of target_modules whose input is rescaled instead of their output; names (a module
            matches by the end of its name) or a regular expression for the whole name; None: the usual ones.
        modules_to_save: names of further modules that train and are saved whole.
        init_ia3_weights: the vectors start at one, so that nothing changes; else at normal random values.

    Raises:
        TypeError: an unknown field, as for every dataclass, or a value of the wrong type.
        ValueError: feedforward_modules names what target_modules does not.
    """

    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    feedforward_modules: list[str] | set[str] | str | None = None
    fan_in_fan_out: bool = False  # set by what is found: a transformers Conv1D is recognised by its type
    modules_to_save: list[str] | None = None
    init_ia3_weights: bool = True

    KIND = PeftType.IA3

    def __post_init__(self):
        super().__post_init__()
        validate.flag("fan_in_fan_out", self.fan_in_fan_out)
        validate.flag("init_ia3_weights", self.init_ia3_weights)
        for name in ("target_modules", "exclude_modules", "feedforward_modules"):
            setattr(self, name, validate.names_or_pattern(name, getattr(self, name)))
        self.modules_to_save = validate.module_names("modules_to_save", self.modules_to_save)
        if isinstance(self.feedforward_modules, set) and isinstance(self.target_modules, set):
            extra = sorted(self.feedforward_modules - self.target_modules)
            if extra:
                raise ValueError(
                    f"feedforward_modules names {extra[0]!r}, which target_modules={sorted(self.target_modules)} does "
                    "not: it must be a subset"
                )
