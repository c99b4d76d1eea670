"""A base model that is quantised: what of its file stays in the process."""

import gc
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pypeft_fast.finetune.base_models import load_base


@pytest.mark.parametrize("quantize", [None, "nf4", "int8"])
def test_no_page_of_the_file_stays_when_it_is_quantised(tiny_model, tmp_path, quantize):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    tied = AutoModelForCausalLM.from_pretrained(folder, tie_word_embeddings=True)
    tied.lm_head.weight = tied.model.embed_tokens.weight
    tied.save_pretrained(folder)
    del tied
    gc.collect()
    model, _ = load_base(str(folder), quantize=quantize)
    gc.collect()
    assert (str(folder) in Path("/proc/self/maps").read_text()) == (quantize is None)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    stored = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    torch.testing.assert_close(model.get_input_embeddings().weight.detach(), stored, rtol=0, atol=0)
