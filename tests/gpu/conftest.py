"""What only a GPU can show."""

import pytest

from tests.device import ON_GPU


def pytest_collection_modifyitems(items):
    if not ON_GPU:
        for item in items:
            if "tests/gpu/" in str(item.path):
                item.add_marker(pytest.mark.skip(reason="needs a GPU: make test-gpu"))
