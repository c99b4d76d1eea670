"""python -m bench.quantized_model: the peak memory and the time of a training step over a 4-bit base model.

A Llama of 1.1 billion parameters with random weights, LoRA r=16 on all linear layers, one sequence of 256 tokens,
gradient checkpointing. Each provider runs in a separate process. The peak is the largest resident set during the second
step, after freed memory has been returned to the system. Writes quantized_model.json and .md.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

from .harness import report
from .harness.targets import at_most

PROVIDERS = ("ours nf4", "PEFT over bitsandbytes nf4", "ours bf16", "PEFT bf16")
HEADER = ("provider", "after loading GB", "peak of a step GB", "seconds a step, CPU time", "loss")
TINY = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=256)  # fmt: skip
BILLION = dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
               num_key_value_heads=4, vocab_size=32000)  # fmt: skip


def resident(name):
    """VmRSS or VmHWM of this process in GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1e6


def made(provider, sizes):
    """The model with its adapters, in training mode."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    import pypeft_fast as pf

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(LlamaConfig(**sizes, use_cache=False))
    torch.set_default_dtype(torch.float32)
    if "nf4" in provider:
        pf.quantize_model(model, "nf4")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
    model = pf.get_peft_model(model, config) if "ours" in provider else get_peft_model(model, config)
    if "ours" in provider:
        fused = pf.fuse(model)
        assert not fused.left, str(fused)
    model.enable_input_require_grads()
    return model.train()


def one(provider, sizes, tokens):
    """The measurements of one provider, taken in this process."""
    import torch

    from pypeft_fast._heap import give_back_freed

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
    torch.set_num_threads(1)
    model = made(provider, sizes)
    ids = torch.randint(0, sizes["vocab_size"], (1, tokens))

    def step():
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        model.zero_grad()
        return loss.item()

    give_back_freed()
    loaded = resident("VmRSS")
    step()
    give_back_freed()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak (VmHWM)
    began, loss = time.process_time(), step()
    return {"loaded": loaded, "peak": resident("VmHWM"), "seconds": time.process_time() - began, "loss": loss}


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.quantized_model", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PROVIDERS, nargs="+", default=PROVIDERS, help="only these providers")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of the sequence (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to test the program")
    parser.add_argument("--output", type=Path, default=report.OUTPUT, help="folder (default: %(default)s)")
    parser.add_argument("--one", choices=PROVIDERS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    sizes = TINY if options.tiny else BILLION
    if options.one:
        print(json.dumps(one(options.one, sizes, options.tokens)))
        return
    from .harness.timing import machine

    about, results = machine(), {}
    line = report.aligned(HEADER, list(PROVIDERS))
    print(report.headline(about), line(HEADER), sep="\n")
    for provider in options.only:
        command = [sys.executable, "-m", "bench.quantized_model", "--one", provider, "--tokens", str(options.tokens)]
        done = subprocess.run(command + ["--tiny"] * options.tiny, stdout=subprocess.PIPE, text=True, check=True)
        results[provider] = json.loads(done.stdout.splitlines()[-1])
        print(line(row(provider, results[provider])), flush=True)
    targets = []
    if "ours nf4" in results:
        targets.append(at_most("peak resident set of a step over nf4, GB", results["ours nf4"]["peak"], 2.5))
    data = {"machine": about, "sizes": sizes, "tokens": options.tokens, "results": results, "targets": targets}
    tables = [(report.TARGET_HEADER, targets), (HEADER, [row(*r) for r in results.items()])]
    report.write(options.output, "quantized_model", data, tables)
    print(report.verdicts(targets))


def row(provider, its):
    return provider, f"{its['loaded']:.2f}", f"{its['peak']:.2f}", f"{its['seconds']:.1f}", f"{its['loss']:.3f}"


if __name__ == "__main__":
    main()
