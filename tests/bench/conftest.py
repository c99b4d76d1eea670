"""The tiny Llama of tests/finetune, also for the benchmarks."""

from tests.finetune.conftest import tiny_model, tokenizer  # noqa: F401
