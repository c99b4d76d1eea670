"""The tiny Llama and the tokenizer of tests/finetune, also for the examples."""

import warnings

import pytest

from tests.finetune.conftest import tiny_model, tokenizer  # noqa: F401


@pytest.fixture
def without_announcements():
    """Fails a test in which a FutureWarning of a library is shown to the user."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        yield
    assert [str(warning.message) for warning in seen if warning.category is FutureWarning] == []
