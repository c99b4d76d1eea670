"""Each method trains exactly the parameters of its paper, by name, and a step changes no others."""

import re

import pytest
import torch
from torch import nn

import pypeft_fast as pf
from pypeft_fast.frozen.modules import is_conv1d
from tests.model.zoo import IDS, assert_fused, build, logits

# Linear layers: the targets of LoRA, DoRA and IA3; those whose inputs IA3 scales; and those that a bottleneck follows,
# which are the last layers of attention and of the feedforward part.
LAYERS = {
    "llama": (("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"), "mlp.down_proj", ("self_attn.o_proj",)),
    "gpt2": (("attn.c_attn", "mlp.c_proj"), "mlp.c_proj", ("attn.c_proj",)),
    "bert": (("self.key", "self.value", "layer.0.output.dense", "layer.1.output.dense"), "output.dense",
             ("attention.output.dense",)),
    "t5": (("Attention.k", "Attention.v", "DenseReluDense.wo"), "DenseReluDense.wo",
           ("SelfAttention.o", "EncDecAttention.o")),
}  # fmt: skip
METHODS = ("lora", "dora", "ia3", "bitfit", "bottleneck", "prompt", "prefix")


def config(method, kind):
    targets, feedforward, _ = LAYERS[kind]
    pattern = f".*({'|'.join(map(re.escape, targets))})"
    task = dict(task_type={"bert": "FEATURE_EXTRACTION", "t5": "SEQ_2_SEQ_LM"}.get(kind, "CAUSAL_LM"))
    if method in ("lora", "dora"):
        return pf.LoraConfig(target_modules=pattern, use_dora=method == "dora", init_lora_weights=False, **task)
    if method == "ia3":
        return pf.IA3Config(target_modules=pattern, feedforward_modules=f".*{re.escape(feedforward)}", **task)
    if method == "bitfit":
        return pf.BitFitConfig(add_missing=kind == "t5", **task)
    if method == "bottleneck":
        return pf.BottleneckConfig(reduction_factor=4, **task)
    kind_of_config = pf.PromptTuningConfig if method == "prompt" else pf.PrefixTuningConfig
    return kind_of_config(num_virtual_tokens=3, **task)


def expected(method, kind):
    """{name: shape} of the parameters that must train, derived from the model without adapters."""
    model = build(kind)
    targets, feedforward, ends = LAYERS[kind]
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) or is_conv1d(m)}
    sizes = {n: m.weight.shape if is_conv1d(m) else m.weight.shape[::-1] for n, m in linear.items()}  # inputs, outputs
    adapted = {n: sizes[n] for n in linear if n.endswith(targets)}
    start = "base_model.model."
    if method in ("lora", "dora"):  # two factors a layer; for DoRA also the magnitude
        found = {f"{start}{n}.lora_A.default.weight": (8, K) for n, (K, _) in adapted.items()}
        found |= {f"{start}{n}.lora_B.default.weight": (N, 8) for n, (_, N) in adapted.items()}
        if method == "dora":
            found |= {f"{start}{n}.lora_magnitude_vector.default.weight": (N,) for n, (_, N) in adapted.items()}
        return found
    if method == "ia3":  # one vector a layer, on its outputs, or on its inputs for feedforward layers
        return {
            f"{start}{n}.ia3_l.default": (1, K) if n.endswith(feedforward) else (N, 1) for n, (K, N) in adapted.items()
        }
    if method == "bitfit":  # the biases
        biases = {n.removesuffix(".bias"): p.shape for n, p in model.named_parameters() if n.endswith(".bias")}
        if kind == "t5":  # t5 has no biases; every linear layer except the head gets one
            biases = {n: (N,) for n, (_, N) in sizes.items() if n != "lm_head"}
        return {f"{start}{n}.bitfit_bias.default": tuple(shape) for n, shape in biases.items()}
    if method == "bottleneck":  # two layers with biases, twice a block
        ends += {"llama": ("mlp.down_proj",), "gpt2": ("mlp.c_proj",), "t5": ("DenseReluDense.wo",)}.get(
            kind, ("layer.0.output.dense", "layer.1.output.dense")
        )
        parts = {"down": {"weight": (8, 32), "bias": (8,)}, "up": {"weight": (32, 8), "bias": (32,)}}
        return {
            f"{start}{n}.bottleneck_adapter_{part}.default.{what}": shape for n in linear if n.endswith(ends)
            for part, shapes in parts.items() for what, shape in shapes.items()
        }  # fmt: skip
    # virtual tokens: their embeddings, or their keys and values in every layer
    rows = 6 if kind == "t5" and method == "prompt" else 3
    width = 32 if method == "prompt" else 2 * 2 * (16 if kind == "llama" else 32)
    return {"prompt_encoder.default.embedding.weight": (rows, width)}


@pytest.mark.parametrize("kind", list(LAYERS))
@pytest.mark.parametrize("method", METHODS)
def test_parameters_that_train_by_name_and_shape_and_a_step_changes_no_others(method, kind):
    model = pf.get_peft_model(build(kind), config(method, kind)).train()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {n: tuple(p.shape) for n, p in trained.items()} == expected(method, kind)
    assert model.get_nb_trainable_parameters()[0] == sum(p.numel() for p in trained.values())
    before = {n: t.clone() for n, t in model.state_dict(keep_vars=True).items()}
    with pf.recording() as ran:
        if kind == "bert":
            logits(model).square().sum().backward()
        else:
            model(input_ids=IDS, labels=IDS).loss.backward()
    if method in ("lora", "dora", "ia3"):
        assert_fused(model)
        assert len(ran) >= 2 * len(pf.fuse(model).fused)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)  # of all parameters; those without a gradient do not change
    optimizer.step()
    changed = {n for n, t in model.state_dict(keep_vars=True).items() if not torch.equal(t, before[n])}
    assert changed and changed <= set(trained)
    assert all(p.grad is None for n, p in model.named_parameters() if n not in trained)
