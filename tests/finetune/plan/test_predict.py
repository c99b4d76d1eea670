"""The memory that a run is predicted to take, of each method, and what a run trains in words."""

import json
import time

import pytest

from pypeft_fast.finetune.data.load import load_data
from pypeft_fast.finetune.errors import UserError
from pypeft_fast.finetune.plan.make import base_of
from pypeft_fast.finetune.plan.predict import predict
from pypeft_fast.finetune.plan.skeleton import read_skeleton
from pypeft_fast.finetune.report.scope import scope
from pypeft_fast.finetune.training.ready import make_ready
from pypeft_fast.finetune.training.settings import Settings

NONE = dict(rank=None, alpha=None, dropout=None, target_modules=None)
METHODS = {
    "lora": (
        dict(rank=4),
        "lora of rank 4 on 14 layers: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj",
    ),
    "dora": (dict(rank=4, target_modules=["q_proj"]), "dora of rank 4 on 2 layers: q_proj"),
    "ia3": (NONE, "ia3 on 6 layers: down_proj, k_proj, v_proj"),
    "bitfit": (NONE, "bitfit on "),
    "bottleneck": (NONE | dict(reduction_factor=4, dropout=0.0), "bottleneck on "),
    "prompt": (NONE | dict(virtual_tokens=5), "prompt with 5 virtual tokens"),
    "prefix": (NONE | dict(virtual_tokens=5), "prefix with 5 virtual tokens"),
}


@pytest.fixture
def model(tiny_model, dialogues):
    def make(**options):
        settings = Settings(str(tiny_model), str(dialogues), **options)
        return make_ready(settings, load_data(settings.data)).model, settings

    return make


@pytest.mark.parametrize("method", METHODS)
def test_every_method(model, method):
    options, says = METHODS[method]
    made, settings = model(method=method, **options)
    began = time.process_time()
    found = predict(made, settings, 60, 10**8)
    assert time.process_time() - began < 2
    trained = sum(p.numel() for p in made.parameters() if p.requires_grad)
    assert (found.adapter, found.optimizer) == (4 * trained, 8 * trained)
    assert found.peak > found.process > 10**8 and found.activations > 0
    assert predict(made, settings, 120, 10**8).activations > 1.8 * found.activations
    assert scope(made, method).startswith(says)


def test_weights_of_another_dtype_than_the_file_are_a_copy(tiny_model, tmp_path):
    """While they are loaded, the file is mapped beside them."""
    config = json.loads((tiny_model / "config.json").read_text()) | {"dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    skeleton = read_skeleton(str(tmp_path))
    bases = {dtype: base_of(skeleton, skeleton.model(dtype), None, dtype, False) for dtype in ("float32", "bfloat16")}
    assert [base.is_converted for base in bases.values()] == [True, False]
    assert bases["float32"].loading == pytest.approx(3 * bases["bfloat16"].loading, rel=0.01)


def test_several_adapters_have_a_batch_of_all_their_rows(model):
    made, settings = model(rank=4)
    one, three = (predict(made, settings, 60, 0, adapters) for adapters in (1, 3))
    assert three.activations == pytest.approx(3 * one.activations, rel=0.1)


def test_an_optimizer_without_state(model):
    made, settings = model(rank=4, optimizer="sgd")
    assert predict(made, settings, 60, 0).optimizer == 0


def test_what_cannot_be_simulated_says_why(model, monkeypatch):
    made, settings = model(rank=4)
    next(iter(made.peft_config.values())).target_modules = {"layers.7.q_proj"}
    with pytest.raises(UserError, match="its step cannot be simulated: .*layers.7.q_proj"):
        predict(made, settings, 60, 0)
