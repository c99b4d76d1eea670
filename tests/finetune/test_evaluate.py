"""The losses of a model and of its adapters."""

import pytest
import torch

from pypeft_fast.finetune.base_models import load_base
from pypeft_fast.finetune.data.load import load_data
from pypeft_fast.finetune.data.tokens import Collator, encode_all
from pypeft_fast.finetune.errors import UserError
from pypeft_fast.finetune.evaluate import evaluate
from pypeft_fast.finetune.held_out import held_out_loss


def test_the_losses_are_those_of_each_model_alone(tiny_model, dialogues, tiny_adapter):
    import peft

    examples = load_data(str(dialogues))
    result = evaluate(str(tiny_model), {"mine": tiny_adapter}, examples, batch_size=3)
    model, tokenizer = load_base(str(tiny_model))
    encoded = encode_all(tokenizer, examples, 512).examples
    base = held_out_loss(model, encoded, Collator.of(tokenizer))
    mine = held_out_loss(peft.PeftModel.from_pretrained(model, tiny_adapter), encoded, Collator.of(tokenizer))
    assert result.losses == {"base": pytest.approx(base, abs=1e-5), "mine": pytest.approx(mine, abs=1e-5)}
    assert abs(base - mine) > 1e-3 and len(result.data.held_out) == 20 and not result.data.train
    assert result.tokens == sum(label >= 0 for one in encoded for label in one.labels)


def test_adapters_of_several_kinds(tiny_model, dialogues, tiny_adapter, tmp_path):
    import peft

    model, tokenizer = load_base(str(tiny_model))
    model = peft.get_peft_model(model, peft.IA3Config(task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ia3_l" in name:
                parameter.mul_(1.5)
    model.save_pretrained(tmp_path / "scaled")
    examples = load_data(str(dialogues))
    encoded = encode_all(tokenizer, examples, 512).examples
    scaled = held_out_loss(model, encoded, Collator.of(tokenizer))
    folders = {"one": tiny_adapter, "scaled": tmp_path / "scaled", "two": tiny_adapter}
    losses = evaluate(str(tiny_model), folders, examples).losses
    assert list(losses) == ["base", "one", "scaled", "two"] and losses["one"] == losses["two"] != losses["base"]
    assert losses["scaled"] == pytest.approx(scaled, abs=1e-5) and abs(scaled - losses["base"]) > 1e-3


def test_a_length_that_leaves_no_answer(tiny_model, dialogues):
    with pytest.raises(UserError, match="`max_length` 2 leaves no token of an answer"):
        evaluate(str(tiny_model), {}, load_data(str(dialogues)), max_length=2)
