"""`make test-versions` tests the versions that pyproject.toml accepts."""

import pytest

from tests.interpreter import python
from tests.versions import environments


def test_the_oldest_versions_are_those_of_pyproject():
    assert environments.oldest("peft", '    "peft>=0.18", # why\n') == "peft==0.18"
    assert "torch==2.10" in environments.ENVIRONMENTS[0].packages
    with pytest.raises(ValueError, match="name='numpy': pyproject.toml names no oldest version of it"):
        environments.oldest("numpy")


def test_every_test_that_is_named_is_there():
    assert all((environments.ROOT / path).exists() for path in environments.TESTS)


def test_list():
    out = python("-m", "tests.versions.run", "--list", expect_success=True).stdout
    assert out.splitlines()[0] == "oldest torch==2.10 peft==0.18 transformers==5.0 numpy<2.4"
    assert out.splitlines()[-1] == "triton-3.6.0 triton-3.7.1 triton-3.9.0 sm_90"
