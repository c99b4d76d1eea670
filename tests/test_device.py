"""The device of the tests: an unknown device and a missing GPU are errors that name the remedy."""

import pytest

from tests import device


@pytest.mark.cpu
@pytest.mark.parametrize(
    "name,words",
    [
        (
            "cuda",
            r"PYPEFT_TEST_DEVICE=cuda: PyTorch .* sees no GPU. .*driver.*`make test` runs the same Triton kernels",
        ),
        ("gpu", "PYPEFT_TEST_DEVICE=gpu is not a device of the tests; choose cpu or cuda"),
    ],
)
def test_an_unknown_device_is_an_error(name, words, monkeypatch):
    monkeypatch.setattr(device, "DEVICE", name)
    monkeypatch.setattr(device, "ON_GPU", name == "cuda")
    with pytest.raises(pytest.UsageError, match=words):
        device.prepare()
