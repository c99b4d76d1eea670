"""BitFitConfig and BottleneckConfig, for the methods that PEFT does not have.

bitfit.py and bottleneck.py describe the files. A wrong value raises TypeError or ValueError, which names the field, the
value and what is accepted.
"""

import math
import os
import re
import tempfile
from dataclasses import dataclass
from typing import ClassVar

from peft import PeftConfig, PeftType
from peft.utils import CONFIG_NAME

from ...autograd.bottleneck import ACTIVATIONS

PLACEMENTS = ("houlsby", "pfeiffer", "parallel")


@dataclass
class TunerConfig(PeftConfig):
    """peft.PeftConfig with atomic saving that writes nothing outside of the folder.

    modules_to_save: names of further modules that are trained and saved whole.
    """

    modules_to_save: list[str] | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.modules_to_save is not None:
            self.modules_to_save = list(_names("modules_to_save", self.modules_to_save, "a list of names"))
            for name in self.modules_to_save:
                _check_pattern("modules_to_save", name)  # PEFT matches the name as a regular expression

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Writes adapter_config.json as PEFT does, first into a temporary folder, and renames the complete file.

        A symbolic link of this name is replaced, not followed. Raises AssertionError, as PEFT does, if save_directory
        is a file.
        """
        if os.path.isfile(save_directory):
            raise AssertionError(f"save_directory={str(save_directory)!r} is a file; give a folder")
        os.makedirs(save_directory, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{CONFIG_NAME}.", dir=save_directory) as draft:
            super().save_pretrained(draft, **kwargs)
            path = os.path.join(draft, CONFIG_NAME)
            with open(path, "rb") as written:
                os.fsync(written.fileno())
            os.replace(path, os.path.join(save_directory, CONFIG_NAME))


@dataclass
class BitFitConfig(TunerConfig):
    """Only bias terms train (Ben Zaken et al., arXiv:2106.10199).

    Args:
        target_modules: the modules whose biases train: names (of a module, or its last parts after a dot), a regular
            expression for the whole name, or "all-linear"; None: every module that has a bias.
        exclude_modules: names or a regular expression of modules to leave out.
        add_missing: target linear layers without a bias get one, which starts at zero; with target_modules=None the
            targets are all linear layers but the output layer.
    """

    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    add_missing: bool = False

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType("BITFIT")
        _check_flag("add_missing", self.add_missing)
        for field in ("target_modules", "exclude_modules"):
            value = getattr(self, field)
            if isinstance(value, str):
                _check_pattern(field, value)
            elif value is not None:
                setattr(self, field, set(_names(field, value, "a list of names or a string")))


@dataclass
class BottleneckConfig(TunerConfig):
    """A bottleneck adapter, a small network of two layers, in every block of a transformer.

    Args:
        placement: "houlsby" (arXiv:1902.00751): on the output of attention and of the feedforward part, before the
            residual is added; "pfeiffer" (arXiv:2005.00247): on the output of the feedforward part alone; "parallel"
            (arXiv:2110.04366): parallel to the feedforward part, from its input to its output.
        reduction_factor: the model's width divided by the bottleneck's width.
        activation: "relu", "silu", "gelu" or "tanh".
        scaling: the factor of the network's output.
        dropout: the dropout rate of the bottleneck's elements, in [0, 1).
        layer_norm: whether the network starts with a layer norm of its own.
    """

    placement: str = "houlsby"
    reduction_factor: float = 16
    activation: str = "relu"
    scaling: float = 1.0
    dropout: float = 0.0
    layer_norm: bool = False

    target_modules: ClassVar[None] = None  # PEFT reads this of every config; here the model's structure decides

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType("BOTTLENECK")
        for field, accepted in (("placement", PLACEMENTS), ("activation", tuple(ACTIVATIONS))):
            if getattr(self, field) not in accepted:
                raise ValueError(f"{field}={getattr(self, field)!r} must be one of {', '.join(accepted)}")
        for field in ("reduction_factor", "scaling"):
            _check_number(field, getattr(self, field), "a positive number", lambda v: 0 < v < math.inf)
        _check_number("dropout", self.dropout, "a number in [0, 1)", lambda v: 0 <= v < 1)
        _check_flag("layer_norm", self.layer_norm)


def _check_flag(field, value) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{field}={value!r} must be True or False")


def _check_number(field, value, what, accepts) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{field}={value!r} must be {what}")
    if not accepts(value):
        raise ValueError(f"{field}={value!r} must be {what}")


def _check_pattern(field, value) -> None:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{field}: {value!r} is not a regular expression: {error}") from None


def _names(field, value, what):
    if not isinstance(value, (list, tuple, set)) or not all(isinstance(name, str) and name for name in value):
        raise TypeError(f"{field}={value!r} must be {what}")
    return value
