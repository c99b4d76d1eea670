"""Adapters on whole models: configs, wrapping, switching, files in PEFT's format."""

from .config import LoraConfig, PeftType, TaskType, get_peft_config
from .peft_model import PeftModel
from .task_models import get_peft_model

__all__ = ["LoraConfig", "PeftModel", "PeftType", "TaskType", "get_peft_config", "get_peft_model"]
