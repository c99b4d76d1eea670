"""A model with a merged adapter: its values, and its folder, which is complete or not written."""

import pytest
import torch

from pypeft_fast.finetune.adapters.merged import save_merged
from pypeft_fast.finetune.errors import UserError

IDS = torch.tensor([[1, 2, 3, 4]])


def test_the_folder_holds_the_model_that_the_adapter_makes(tiny_model, tiny_adapter, tmp_path):
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    save_merged(str(tiny_model), tiny_adapter, tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = base(IDS).logits
    expected = peft.PeftModel.from_pretrained(base, tiny_adapter)(IDS).logits
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(IDS).logits
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)
    assert (merged - before).abs().max() > 1e-3
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template


def test_a_disk_that_is_full_leaves_nothing(tiny_model, tiny_adapter, tmp_path, monkeypatch):
    from transformers import PreTrainedModel

    def full(self, folder, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(UserError, match="merged cannot be written: .*No space left"):
        save_merged(str(tiny_model), tiny_adapter, tmp_path / "merged")
    assert not list(tmp_path.iterdir())
