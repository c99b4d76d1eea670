"""What the configs of all methods share: the task, the kind, and the fields that PEFT writes into every file."""

import dataclasses
import enum
from dataclasses import dataclass
from typing import ClassVar

from . import validate


class TaskType(str, enum.Enum):
    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


class PeftType(str, enum.Enum):
    LORA = "LORA"
    IA3 = "IA3"
    PROMPT_TUNING = "PROMPT_TUNING"
    PREFIX_TUNING = "PREFIX_TUNING"
    BITFIT = "BITFIT"  # of this package alone, as is the next
    BOTTLENECK = "BOTTLENECK"


@dataclass
class PeftConfig:
    """The fields that every method has; a method's own config adds its fields and sets KIND.

    Args:
        task_type: one of TaskType; for classification the classifier is saved too.
        inference_mode: the adapter does not train.
        peft_type, auto_mapping, peft_version, base_model_name_or_path, revision: about the file, filled in when an
            adapter is made or saved.

    Raises TypeError or ValueError that names a field, its value and what is accepted.
    """

    task_type: str | TaskType | None = None
    peft_type: str | PeftType | None = None
    auto_mapping: dict | None = None
    peft_version: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = False

    KIND: ClassVar[PeftType]
    SEQUENCE_METHOD: ClassVar[bool] = False  # it adds virtual tokens and leaves the model's modules alone

    def __post_init__(self):
        if self.peft_type not in (None, self.KIND):
            raise ValueError(f"peft_type={self.peft_type!r} is not {self.KIND.value}")
        self.peft_type = self.KIND
        if self.task_type is not None and self.task_type not in list(TaskType):
            raise ValueError(f"task_type={self.task_type!r} must be one of {', '.join(t.value for t in TaskType)}")
        validate.flag("inference_mode", self.inference_mode)

    def to_dict(self) -> dict:
        """Plain values, as adapter_config.json holds them."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain = {k: sorted(v) if isinstance(v, set) else v for k, v in values.items()}
        return {k: v.value if isinstance(v, enum.Enum) else v for k, v in plain.items()}

    def save_pretrained(self, save_directory) -> None:
        """Writes adapter_config.json, atomically."""
        from . import files

        files.save_config(save_directory, self)

    @classmethod
    def from_pretrained(cls, path) -> "PeftConfig":
        """Reads PATH/adapter_config.json; FileNotFoundError or ValueError says what is wrong with it.

        A method's own class reads files of that method only; PeftConfig reads any.
        """
        from . import files

        config = files.load_config(path)
        if not isinstance(config, cls):
            raise ValueError(f"{path} holds a {type(config).__name__}, not a {cls.__name__}")
        return config
