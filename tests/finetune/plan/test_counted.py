"""The counts of a plan are those of PEFT's model and of its file; the bytes of a quantised base are those it has."""

import pytest
from transformers import LlamaConfig

import pypeft_fast as pf
from pypeft_fast.finetune.plan.candidates import Candidate
from pypeft_fast.finetune.plan.counted import at_rank, file_bytes, parameters, tensors_of, with_adapter
from pypeft_fast.finetune.plan.skeleton import Skeleton, remarks
from pypeft_fast.finetune.plan.weights import base_bytes

SIZES = dict(hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
LLAMA = Skeleton("llama", LlamaConfig(**SIZES, vocab_size=512), True)
TIED = Skeleton("tied", LlamaConfig(**SIZES, vocab_size=512, tie_word_embeddings=True), True)


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj")])
def test_parameters_and_the_file_are_pefts(tmp_path, method, targets):
    of_four = Candidate(method, "group", targets, None if method == "ia3" else 4)
    shapes = tensors_of(with_adapter(LLAMA.model("float32"), of_four, "CAUSAL_LM"))
    for rank in (4, 16, 64) if of_four.rank else (None,):
        its = at_rank(shapes, rank)
        model = with_adapter(
            LLAMA.model("float32", device="cpu"), Candidate(method, "group", targets, rank), "CAUSAL_LM"
        )
        assert parameters(its) == model.get_nb_trainable_parameters()[0]
        model.save_pretrained(tmp_path / str(rank))
        assert file_bytes(its) == (tmp_path / str(rank) / "adapter_model.safetensors").stat().st_size


@pytest.mark.parametrize("base", [None, "nf4", "int8"])
@pytest.mark.parametrize("skeleton", [LLAMA, TIED])
def test_the_bytes_of_a_base_model(base, skeleton):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    said = base_bytes(skeleton.model("bfloat16"), base)
    model = skeleton.model("bfloat16", device="cpu")
    layers = []
    if base:
        pf.quantize_model(model, base)
        layers = [m for m in model.modules() if type(m).__name__ in ("Linear4bit", "Linear8bitLt")]
        assert layers
    quantised = {id(m.weight) for m in layers}
    dense = {id(t): t for t in (*model.parameters(), *model.buffers()) if id(t) not in quantised}
    found = sum(t.numel() * t.element_size() for t in dense.values())
    found += sum(t.numel() * t.element_size() for m in layers for t in pf.frozen_of(m).tensors)
    assert said == pytest.approx(found, rel=0.01)


def test_remarks():
    assert "counted once" in remarks(TIED.model("float32"), 3)[0]
    assert remarks(LLAMA.model("float32"), 3) == []
