"""A plugin of pytest for rehearsals: pytest collects the tests as it would on an sm_90 GPU, but cannot run them."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch

PROPERTIES = SimpleNamespace(name="faked", major=9, minor=0, multi_processor_count=132, total_memory=1 << 37)
FAKED = {
    "is_available": lambda: True,
    "get_device_capability": lambda device=None: (9, 0),
    "get_device_properties": lambda device=None: PROPERTIES,
}


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if not config.option.collectonly:
        raise pytest.UsageError("bench.gpu_hour.faked only collects: no test can run on a GPU that is not there")
    if importlib.util.find_spec("peft"):  # peft imports bitsandbytes, which needs a CUDA build if it sees a GPU
        importlib.import_module("peft")
    for name, function in FAKED.items():
        setattr(torch.cuda, name, function)
    torch.set_default_device = lambda device: None


def pytest_sessionstart():
    """Sets the tests' device to meta, after their conftest has read it: some test files make tensors on import."""
    sys.modules["tests.device"].DEVICE = "meta"
