"""Adapter folders: PEFT's saving made atomic, and PEFT's loading preceded by checks of the files."""

from .dry_run import expected_tensors
from .mixin import SafeFiles
from .names import check_adapter_name

__all__ = ["SafeFiles", "check_adapter_name", "expected_tensors"]
