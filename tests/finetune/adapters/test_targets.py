"""target_modules as a regular expression that matches modules with layers inside, and too many virtual tokens."""

import pytest
from transformers import AutoModelForCausalLM

from pypeft_fast.finetune.adapters.adapted import adapted
from pypeft_fast.finetune.errors import UserError
from pypeft_fast.finetune.training.settings import Settings


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target_modules": ".*"}, r"`target_modules` '\.\*' matches the whole model, a module that holds others; end"),
        (
            {"target_modules": ".*self_attn"},
            "matches model.layers.0.self_attn, .* such as k_proj, o_proj, q_proj, v_proj",
        ),
        (
            {"method": "prompt", "virtual_tokens": 10**15},
            "`virtual_tokens` 1000000000000000 leaves no position for an example: this model has 256",
        ),
    ],
)
def test_what_no_adapter_can_have(tiny_model, options, says):
    usual = {"rank": None, "alpha": None, "dropout": None} if "method" in options else {}
    with pytest.raises(UserError, match=says):
        adapted(AutoModelForCausalLM.from_pretrained(tiny_model), Settings("m", "d", **usual | options))
