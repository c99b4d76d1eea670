"""Four layers of an 8-billion Llama with random weights in bfloat16: the time and the peak memory of a training step.

The models are the frozen model, the model under Hugging Face PEFT's defaults (rank 16, all seven projections, float32
adapters, dropout 0.05), and the PEFT model after pf.fuse. The vocabulary is small, since the full head of a model of 32
layers would dominate the time of four layers.
"""

import functools
import sys

import torch
import transformers

from ...fuse import config_of, fused_twin, relative_difference
from ...harness.causal_lm import graph_to_the_embeddings, loss_of, randomize_adapters, training_steps
from .. import device, found

SIZES = device.sized(
    dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=4, num_attention_heads=32,
         num_key_value_heads=8, vocab_size=8192),
    dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
         vocab_size=97),
)  # fmt: skip
SHAPE = device.sized((2, 2048), (1, 5))
LOGITS = 0.05  # the largest accepted difference of the fused logits from PEFT's, relative to their norm


def base_model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, use_cache=False, dtype="bfloat16")
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    return model.requires_grad_(False).train()


def peak(step):
    """The peak memory of a step in bytes, without the memory allocated before the step; None in a rehearsal."""
    if device.REHEARSED:
        return step()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def results(model, tokens):
    """(logits, all gradients as one vector), without dropout."""
    output = model.eval()(input_ids=tokens, labels=tokens, use_cache=False)
    output.loss.backward()
    grads = torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    model.train()
    return output.logits.detach().double(), grads


def main():
    import peft

    device.prepare()
    tokens = torch.randint(0, SIZES["vocab_size"], SHAPE)
    model = base_model()
    hook = graph_to_the_embeddings(model)
    frozen = training_steps({"frozen": model}, tokens)["frozen"]
    frozen()
    bytes_of = {"frozen": peak(frozen)}
    seconds = device.interleaved({"frozen": frozen}, 1.0)
    found.keep(seconds=seconds, peak=bytes_of, line=f"frozen alone: {1e3 * seconds['frozen']:.1f} ms")
    adapted = peft.get_peft_model(model, config_of("LoRA", 0.05))
    randomize_adapters(adapted)
    twin, _ = fused_twin(adapted)
    made = {"PEFT": adapted, "fused": twin}
    pairs = zip(results(twin, tokens), results(adapted, tokens), strict=True)
    far = dict(zip(("logits", "gradients"), (relative_difference(*pair) for pair in pairs), strict=True))
    print(far, flush=True)
    if not far["logits"] <= LOGITS:
        found.keep(seconds=seconds, peak=bytes_of, off=far)
        sys.exit(f"fused, the logits are {far['logits']:.2g} off PEFT's: no speed is reported")
    steps = training_steps(made, tokens)
    bytes_of |= {name: peak(step) for name, step in steps.items()}
    # PEFT has replaced the base model's layers, so the frozen step runs the adapted model with its adapters disabled.
    steps["frozen again"] = functools.partial(without_adapters, adapted, tokens)
    seconds |= device.interleaved(steps, 4.0)
    hook.remove()
    line = ", ".join(f"{name} {1e3 * s:.1f} ms" for name, s in seconds.items())
    found.keep(seconds=seconds, peak=bytes_of, off=far, shape=SHAPE, sizes=SIZES, line=line)


def without_adapters(model, tokens):
    with model.disable_adapter():
        loss_of(model, tokens).backward()


if __name__ == "__main__":
    main()
