"""The tiny Llama of the command's tests, for the examples too."""

from tests.finetune.conftest import tiny_model, tokenizer  # noqa: F401
