"""The setup of every test: one device, fixed seeds, and fixtures for NaN in new memory and for threads."""

import os

import pytest
import torch

from pypeft_fast import _own  # noqa: F401 - with it all ops are there, which tests are parametrized by
from tests import device


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def poisoned():
    """torch.empty gives NaN (255 for bytes), so an element that a kernel never writes fails its test."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def set_threads():
    """torch.set_num_threads; the number of threads is restored after the test, also if it fails."""
    threads = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(threads)


def pytest_configure():
    device.prepare()
    # One thread for each worker, because several workers run the suite; results must not depend on the number.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if os.environ.get("PYPEFT_EMULATE") == "1":  # before the collection, in which tests ask for available kernels
        from tests import emulator

        emulator.load()


def pytest_collection_modifyitems(items):
    if device.ON_GPU:
        for item in items:
            if item.get_closest_marker("cpu"):
                item.add_marker(pytest.mark.skip(reason="about tensors on the CPU"))
