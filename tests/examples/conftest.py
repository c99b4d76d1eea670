"""The tiny Llama and the tokenizer of the library's tests, for the examples too."""

import warnings

import pytest

from tests.finetune.conftest import tiny_model, tokenizer  # noqa: F401


@pytest.fixture
def without_announcements():
    """Fails a test in which libraries tell each other's authors of names that will go, as a user would see it."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        yield
    assert [str(warning.message) for warning in seen if warning.category is FutureWarning] == []
