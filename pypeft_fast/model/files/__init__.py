"""Adapter folders: saved atomically, and checked before a model changes. Around PEFT's own saving and loading."""

from .dry_run import expected_tensors
from .mixin import SafeFiles
from .names import check_adapter_name

__all__ = ["SafeFiles", "check_adapter_name", "expected_tensors"]
