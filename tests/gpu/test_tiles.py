"""Every tile configuration that tuning may choose on this GPU gives right results, and so does the tuned choice."""

import dataclasses

import pytest
import torch

from pypeft_fast import _tuning
from pypeft_fast._op import OPS
from pypeft_fast.testing import Case, assert_agrees
from tests.device import ON_GPU

if not ON_GPU:
    pytest.skip("needs a GPU: make test-gpu", allow_module_level=True)

from pypeft_fast.kernels import _tiles  # noqa: E402

# {op with several launches that have tiles: these launches}
SEVERAL = {
    "multi_lora_forward": ("lora_shrink, segments", "lora_linear, segments"),
    "multi_lora_backward": ("lora_ds_db, segments", "lora_dx, segments", "lora_da, segments"),
}
NAMES = [name for name, op in OPS.items() if "triton" in {k.name for k in op.kernels}]
LAUNCHES = [
    *((name, name, {}) for name in NAMES if name not in SEVERAL),
    ("lora_linear, scale", "lora_linear", {"scale": True}),
    *((launch, name, {}) for name, launches in SEVERAL.items() for launch in launches),
]
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
# Several tiles of the largest configuration in each direction, with partial tiles; rows of whole 16 bytes, for TMA.
CASE = Case(400, 392, 536, 24, 0.3)
DTYPES = [(BF16, None), (F16, None), (BF16, F32), (F32, None)]
ARCH = _tiles.architecture(torch.device("cuda"))


def configurations():
    for launch, name, options in LAUNCHES:
        for dtype, adapter in DTYPES if name not in SEVERAL else [(BF16, None), (BF16, F32)]:
            product = launch.removesuffix(_tiles.SEGMENTS) in _tiles.GEMMS
            bits = _tiles.bits_of(ARCH, (dtype,) if product else (dtype, adapter or dtype))
            case = dataclasses.replace(CASE, dtype=dtype, adapter=adapter, options=options)
            for config in _tiles.candidates(launch, ARCH, bits).values():
                yield pytest.param(name, launch, case, config, id=f"{launch}-{dtype}-{adapter}-{config}")


@pytest.mark.parametrize("name,launch,case,config", configurations())
def test_every_candidate_agrees_with_float64(name, launch, case, config, poisoned, monkeypatch):
    candidates = _tiles.candidates
    monkeypatch.setattr(
        _tiles, "candidates", lambda op, *rest: {str(config): config} if op == launch else candidates(op, *rest)
    )
    assert_agrees(name, "triton", case)


@pytest.mark.parametrize("name", NAMES)
def test_the_tuned_choice_agrees_with_float64(name, monkeypatch, tmp_path):
    monkeypatch.setenv("PYPEFT_FAST_TUNE", "1")
    monkeypatch.setenv("PYPEFT_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(_tuning, "_known", {})
    assert_agrees(name, "triton", dataclasses.replace(CASE, dtype=BF16))
    assert len(list(_tuning.folder().iterdir())) == len(SEVERAL.get(name, (name,)))
