"""BitFitConfig: a method that PEFT does not have; its file format is described in bitfit.py."""

from dataclasses import dataclass

from . import checks
from .config import TunerConfig
from .peft_types import BITFIT


@dataclass
class BitFitConfig(TunerConfig):
    """Only bias terms train (Ben Zaken et al., arXiv:2106.10199).

    Args:
        target_modules: the modules whose biases train: names (a module matches by its whole name or by what follows a
            dot), a regular expression for the whole name, or "all-linear"; None: every module that has a bias.
        exclude_modules: what to leave out of these.
        add_missing: linear layers among them that have no bias get one, which starts at zero; with
            target_modules=None these are all linear layers but the output layer.
        modules_to_save: names of further modules that train and are saved whole.

    Raises TypeError or ValueError that names the field, its value and what is accepted.
    """

    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    add_missing: bool = False
    modules_to_save: list[str] | None = None

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = BITFIT
        checks.flag("add_missing", self.add_missing)
        self.target_modules = checks.names_or_pattern("target_modules", self.target_modules)
        self.exclude_modules = checks.names_or_pattern("exclude_modules", self.exclude_modules)
        self.modules_to_save = checks.module_names("modules_to_save", self.modules_to_save)
