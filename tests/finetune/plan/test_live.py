"""The bytes that a simulated step keeps are those of a real step, and grow with the blocks as they say."""

import pytest
import torch
from transformers import BertConfig, LlamaConfig, Qwen3MoeConfig

from pypeft_fast.finetune.plan import live
from pypeft_fast.finetune.plan.candidates import Candidate, target_groups
from pypeft_fast.finetune.plan.counted import with_adapter
from pypeft_fast.finetune.plan.skeleton import Skeleton

SIZES = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, vocab_size=512)
LLAMA = Skeleton("llama", LlamaConfig(**SIZES, num_key_value_heads=2, use_cache=False), True)
BERT = Skeleton("bert", BertConfig(**SIZES, hidden_dropout_prob=0.0), False)
SHAPE = 2, 32


def simulated(skeleton, candidate, dtype="float32", saves=False):
    model = with_adapter(skeleton.model(dtype, live.DEPTH), candidate, skeleton.task)
    return live.activations(model, SHAPE, skeleton.causal, saves)


def real_peak(skeleton, candidate, dtype, saves, depth):
    """The most live bytes of a step on real tensors."""
    model = with_adapter(skeleton.model(dtype, depth, "cpu"), candidate, skeleton.task).train()
    if saves:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert not candidate.rank or any("Fused" in kind.__name__ for m in model.modules() for kind in type(m).__mro__)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    tokens = torch.randint(0, 512, SHAPE)
    with live.Live([*model.parameters(), *model.buffers()]) as counted:
        live.loss_of(model, tokens, skeleton.causal).backward()
    return counted.peak


@pytest.mark.parametrize("saves", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_a_simulated_step_is_a_real_step_of_more_blocks(method, dtype, saves):
    candidate = Candidate(method, "all-linear", "all-linear", None if method == "ia3" else 8)
    its = simulated(LLAMA, candidate, dtype, saves)
    assert its.at(2) == real_peak(LLAMA, candidate, dtype, saves, 2)
    assert its.at(4) == pytest.approx(real_peak(LLAMA, candidate, dtype, saves, 4), rel=0.02)
    assert its.heap >= 0


def test_an_encoder():
    candidate = Candidate("lora", "q,v", ("query", "value"), 4)
    assert simulated(BERT, candidate).at(3) == pytest.approx(real_peak(BERT, candidate, "float32", False, 3), rel=0.02)


def test_experts():
    config = Qwen3MoeConfig(**SIZES, num_key_value_heads=2, moe_intermediate_size=32, num_experts=4,
                            num_experts_per_tok=2, use_cache=False)  # fmt: skip
    its = simulated(Skeleton("experts", config, True), Candidate("lora", "q,v", ("q_proj", "v_proj"), 4), "bfloat16")
    assert its.block > 0 and its.peak > its.block


def test_checkpointing_keeps_only_what_enters_a_block():
    candidate = Candidate("lora", "all-linear", "all-linear", 8)
    assert simulated(LLAMA, candidate, saves=True).block == 4 * SHAPE[0] * SHAPE[1] * SIZES["hidden_size"]


def test_freed_small_tensors_count_as_heap():
    with live.Live([]) as counted:
        small = torch.empty(1000, device="meta")
        del small
        large = torch.empty(live.MAPPED, device="meta")
    assert counted.peak == 4 * live.MAPPED and counted.heap[1] == 4000 and counted.mapped == [counted.peak] * 2
    del large
    assert counted.now == 0


def test_groups_of_layers():
    model = LLAMA.model("float32")
    assert target_groups(model, 4) == {
        "q,v": ("q_proj", "v_proj"),
        "attention": ("k_proj", "o_proj", "q_proj", "v_proj"),
        "mlp": ("down_proj", "gate_proj", "up_proj"),
        "all-linear": "all-linear",
    }
    assert target_groups(model, 4, ["mlp"]) == {"mlp": ("down_proj", "gate_proj", "up_proj")}


def test_names_that_two_groups_share_become_an_expression():
    groups = target_groups(BERT.model("float32"), 4)
    model = with_adapter(BERT.model("float32"), Candidate("lora", "mlp", groups["mlp"], 4), BERT.task)
    adapted = {name.partition("layer.0.")[2] for name in model.targeted_module_names if "layer.0." in name}
    assert adapted == {"intermediate.dense", "output.dense"}
