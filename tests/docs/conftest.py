"""The command in this process, and the tiny Llama and its adapter of the library's tests."""

from tests.cli.conftest import command  # noqa: F401
from tests.finetune.conftest import tiny_adapter, tiny_model, tokenizer  # noqa: F401
