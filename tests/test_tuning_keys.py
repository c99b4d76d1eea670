"""What a timed choice depends on is in its key: of the choice between kernels, and of that between Triton's tiles."""

import dataclasses

import pytest
import torch

from pypeft_fast import _tuning
from pypeft_fast._op import OPS
from pypeft_fast.testing import Case, sample

pytest.importorskip("triton", reason="Triton is not installed")
F32, BF16 = torch.float32, torch.bfloat16
# What the time of a side product depends on: of each, two calls that must not share a decision.
DIFFERENT = {
    "dropout": (dict(p=0.0), dict(p=0.3)),
    "the adapter's dtype": (dict(dtype=BF16), dict(dtype=BF16, adapter=F32)),
    "the dtype": (dict(dtype=F32), dict(dtype=BF16)),
    "the rank": (dict(r=4), dict(r=8)),
    "the rows": (dict(M=6), dict(M=9)),
    "the inner axis": (dict(K=24, N=24), dict(K=32, N=32)),
}


def key_of_tiles(monkeypatch, call):
    """What _tiles.launch asks _tuning with in this call of one launch, whose kernel is not run."""
    (key,) = keys_of_tiles(monkeypatch, call)
    return key


def keys_of_tiles(monkeypatch, call, arch=90):
    """The same for a call of several launches with tiles."""
    from pypeft_fast.kernels import _tiles

    keys = []
    monkeypatch.setattr(_tiles, "architecture", lambda device: arch)
    monkeypatch.setattr(_tuning, "fastest", lambda key, options, run, device: keys.append(key) or next(iter(options)))
    kept = _tiles.launch

    def launch(op, run, operands, sizes, *options):
        kept(op, lambda config: None, operands, sizes, *options)

    monkeypatch.setattr(_tiles, "launch", launch)
    call()
    monkeypatch.undo()
    return keys


@pytest.mark.parametrize("what", DIFFERENT)
@pytest.mark.parametrize("name", ["lora_shrink", "lora_ds_db", "lora_da", "lora_linear", "lora_dx"])
def test_what_the_time_depends_on_is_in_both_keys(name, what, monkeypatch):
    """Of the kernel, and of a Triton kernel's tiles."""
    op = OPS[name]
    calls = [sample(name, dataclasses.replace(Case(M=6, K=40, N=40, r=4), **given)) for given in DIFFERENT[what]]
    tiles = [key_of_tiles(monkeypatch, lambda args=args: op.function("triton")(*args)) for args in calls]
    same = what == "dropout" and name in ("lora_linear", "lora_ds_db")  # which have none
    assert (op._depends(*calls[0]) == op._depends(*calls[1])) == (tiles[0] == tiles[1]) == same


def test_the_gradients_that_are_needed_and_the_strides_are_in_both_keys(monkeypatch):
    dY, B, s, scaling, _, _ = sample("lora_ds_db", Case(M=8, K=40, N=40, r=4))
    calls = [(dY, B, s, scaling, *needs) for needs in ((True, True), (True, False), (False, True))]
    calls.append((dY.t().contiguous().t(), *calls[0][1:]))
    op = OPS["lora_ds_db"]
    assert len({op._depends(*args) for args in calls}) == 4
    assert len({key_of_tiles(monkeypatch, lambda args=args: op.function("triton")(*args)) for args in calls}) == 4


def test_groups_are_in_both_keys(monkeypatch):
    x, A, p, seed = sample("lora_shrink", Case(M=8, K=40, r=12, p=0.3))
    op, calls = OPS["lora_shrink"], [(x, A, p, seed.expand(groups)) for groups in (1, 3)]
    assert len({op._depends(*args) for args in calls}) == 2
    assert len({key_of_tiles(monkeypatch, lambda args=args: op.function("triton")(*args)) for args in calls}) == 2


@pytest.mark.parametrize("name,launches", [("multi_lora_forward", 2), ("multi_lora_backward", 3)])
def test_rows_of_several_adapters_are_in_the_keys_of_tiles_only(name, launches, monkeypatch):
    """No kernel is chosen by timing, because "blas" waits for the device."""
    op, case = OPS[name], Case(M=6, K=40, N=40, r=4)
    assert op._depends is None
    first = sample(name, dataclasses.replace(case, options={"adapters": 8}))
    others = [
        sample(name, dataclasses.replace(case, options={"adapters": 9})),
        sample(name, dataclasses.replace(case, r=8, options={"adapters": 8})),
        sample(name, dataclasses.replace(case, M=9, options={"adapters": 8})),
        sample(name, dataclasses.replace(case, dtype=BF16, options={"adapters": 8})),
    ]
    triton = op.function("triton")
    keys = keys_of_tiles(monkeypatch, lambda: triton(*first))
    assert len(set(keys)) == launches
    for other in others:
        changed = keys_of_tiles(monkeypatch, lambda other=other: triton(*other))
        assert not any(a == b for a, b in zip(keys, changed, strict=True))
