"""Marks the slowest tests of Triton's interpreter."""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """A batch of 64 adapters takes Triton's interpreter up to 15 seconds: `make test` has the batches of 1, 2 and 8."""
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        adapters = getattr(params.get("case"), "options", {}).get("adapters", params.get("n"))
        if params.get("kernel") == "triton" and (adapters == 64 or "64 adapters" in str(params.get("title"))):
            item.add_marker(pytest.mark.slow)
