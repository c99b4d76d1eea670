"""The tiny Llama and the tokenizer of the library's tests, for the examples too."""

from tests.finetune.conftest import tiny_model, tokenizer  # noqa: F401
