"""Shares of the gradient energy, of synthetic layers."""

import pytest

from pypeft_fast.finetune.advise.energy import LayerEnergy
from pypeft_fast.finetune.advise.shares import by_block, by_module, of_targets


def layer(block, module, parameters, *energies):
    name = module if block is None else f"model.layers.{block}.{module}"
    return LayerEnergy(name, block, module, parameters, energies)


LAYERS = [
    layer(0, "self_attn.q_proj", 10, 1.0, 3.0),
    layer(0, "mlp.down_proj", 30, 2.0, 2.0),
    layer(1, "self_attn.q_proj", 10, 3.0, 1.0),
    layer(1, "mlp.down_proj", 30, 4.0, 0.0),
]


def test_of_a_module_type():
    shares = by_module(LAYERS)
    assert list(shares) == ["q_proj", "down_proj"]
    q = shares["q_proj"]
    assert (q.layers, q.parameters, q.energy, q.cost) == (2, 20, 8 / 16, 20 / 80)
    assert q.density == 2.0
    # Per batch: 4 of 10 and 4 of 6. Residuals 4 - 5 and 4 - 3: sqrt(2 * 2) / 16.
    assert q.error == pytest.approx(2 / 16)
    assert shares["down_proj"].error == pytest.approx(q.error)


def test_of_a_block():
    shares = by_block([*LAYERS, layer(None, "project_in", 20, 8.0, 8.0)])
    assert {block: share.energy for block, share in shares.items()} == {0: 8 / 32, 1: 8 / 32}
    assert shares[0].cost == 40 / 100


def test_of_target_modules():
    assert of_targets(("q_proj",), LAYERS).energy == 0.5
    assert of_targets(r".*\.\d+\.(mlp\.down_proj)", LAYERS).parameters == 60
    whole = of_targets("all-linear", LAYERS)
    assert (whole.energy, whole.error, whole.cost, whole.layers) == (1.0, 0.0, 1.0, 4)


def test_types_with_the_same_last_name_keep_their_whole_names():
    layers = [layer(0, "attn.c_proj", 1, 1.0), layer(0, "mlp.c_proj", 1, 1.0), layer(0, "mlp.c_fc", 1, 2.0)]
    assert list(by_module(layers)) == ["attn.c_proj", "mlp.c_proj", "c_fc"]
    assert by_module(layers)["c_fc"].error is None
