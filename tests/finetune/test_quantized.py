"""A base model that is quantised: what of its file stays in the process."""

import gc
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pypeft_fast.finetune.base_models import load_base
from pypeft_fast.finetune.quantized import leave_file


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


def test_tensors_that_share_memory_still_do():
    module = torch.nn.Linear(4, 6)
    module.register_buffer("part", module.weight.data[:2])
    module.register_buffer("turned", module.weight.data.t())
    module.register_buffer("other", module.weight.data.view(torch.int32))
    module.register_buffer("one", torch.ones(1, 1).expand(1000, 1000))
    module.register_buffer("sparse", torch.eye(3).to_sparse())
    before, place = module.weight.clone(), module.weight.data_ptr()
    leave_file(module)
    assert torch.equal(module.weight, before) and module.weight.data_ptr() != place
    for name in ("part", "turned", "other"):
        assert getattr(module, name).data_ptr() == module.weight.data_ptr()
    assert torch.equal(module.turned, before.t()) and module.other.dtype == torch.int32
    assert module.one.untyped_storage().nbytes() == 4 and module.one.sum() == 10**6
