"""The tiny Llama of the command's tests, for the benchmarks too."""

from tests.finetune.conftest import tiny_model, tokenizer  # noqa: F401
