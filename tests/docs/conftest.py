"""The command in this process, and the tiny Llama and its adapter of the library's tests."""

import shutil

import pytest

from pypeft_fast.finetune import base_models
from tests.cli.conftest import command  # noqa: F401
from tests.finetune.conftest import tiny_adapter, tiny_model, tokenizer  # noqa: F401


@pytest.fixture
def smollm2_is_tiny(tiny_model, tmp_path, monkeypatch):  # noqa: F811
    """`--model smollm2` is a tiny Llama in the cache of unpacked models."""
    monkeypatch.setenv("PYPEFT_FAST_CACHE", str(tmp_path / "cache"))
    shutil.copytree(tiny_model, base_models.smollm2_cached())
