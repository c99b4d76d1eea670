"""python -m bench.adapter_files: saving, loading and swapping files of adapters, beside PEFT and the disk's own time.

The adapter is LoRA of rank 32 on all linear layers of a Llama of 8 billion parameters. Its base model is on the meta
device and has no values. The disk's own time is that of the same bytes: written with the fsync calls of our saving, or
read with the page cache warm (the file is in memory) or dropped. The second table is of SmolLM2-135M with random
values: load_adapter over a running adapter, and a folder of adapters. Wall times, interleaved, medians. Before a speed
is reported, the loaded values are compared with the saved ones. Writes adapter_files.json and .md.
"""

import argparse
import gc
import itertools
import os
import shutil
import statistics
import time
import warnings
from pathlib import Path

import peft
import torch

import pypeft_fast as pf

from .harness import report
from .harness.targets import at_most
from .harness.timing import machine

LARGE = dict(hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8)
SMALL = dict(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3)
WEIGHTS = "adapter_model.safetensors"
LIBRARIES = {"ours": pf, "PEFT": peft}
HEADER = ("8 billion parameters, r=32", "page cache", "MB", "disk s", "ours s", "PEFT s", "ours beyond the disk s")
SMALL_HEADER = ("SmolLM2-135M, r=16", "ours ms", "PEFT ms")


def base(shape: dict, layers: int, device: str):
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device(device):
        return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **shape)).to(torch.bfloat16)


def adapted(library, model, r: int):
    """The base model with a LoRA adapter of random float32 values on all linear layers, also over a base on meta."""
    torch.manual_seed(0)
    model = library.get_peft_model(model, peft.LoraConfig(r=r, target_modules="all-linear", task_type="CAUSAL_LM"))
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad:
                module._parameters[name] = torch.nn.Parameter(torch.randn(parameter.shape) / 64)
    return model


def adapters_values(model, name="default"):
    return {key: p for key, p in model.named_parameters() if f".{name}." in key}


def check_same(model, other, name="default"):
    """AssertionError if the loaded adapter is not the saved one."""
    ours, theirs = adapters_values(model, name), adapters_values(other)
    assert len(ours) == len(theirs) > 0
    for key, value in theirs.items():
        assert torch.equal(ours[key.replace(".default.", f".{name}.")], value), key


def seconds(step) -> tuple[float, object]:
    start = time.perf_counter()
    result = step()
    return time.perf_counter() - start, result


def write_synced(folder: Path, content: bytes):
    """What saving makes the disk do: a whole file, fsync, a rename, fsync of the folder before and after it."""
    with open(folder / "scratch", "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.replace(folder / "scratch", folder / "content")
    os.fsync(descriptor)
    os.close(descriptor)


def set_page_cache(path: Path, state: str):
    """Reads the file, or makes the system forget it."""
    if state == "warm":
        path.read_bytes()
        return
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def time_large(folder: Path, layers: int, rounds: int):
    """{(what, page cache): {"disk" | "ours" | "PEFT": seconds}} and the bytes of the weights."""
    models = {name: adapted(library, base(LARGE, layers, "meta"), 32) for name, library in LIBRARIES.items()}
    places = {name: folder / name for name in models}
    times: dict = {}

    def note(what, cache, name, step):
        took, result = seconds(step)
        times.setdefault((what, cache), {}).setdefault(name, []).append(took)
        return result

    for _ in range(rounds):
        for name, model in models.items():
            note("save_pretrained", "", name, lambda m=model, n=name: m.save_pretrained(places[n]))
        content = (places["ours"] / WEIGHTS).read_bytes()
        note("save_pretrained", "", "disk", lambda c=content: write_synced(folder, c))
        (folder / "content").unlink()
        size = len(content)
        del content
        for cache, (name, library) in itertools.product(("warm", "dropped"), LIBRARIES.items()):
            path = places[name] / WEIGHTS
            if name == "ours":
                set_page_cache(path, cache)
                note("from_pretrained", cache, "disk", path.read_bytes)
            set_page_cache(path, cache)
            step = loading(library, base(LARGE, layers, "meta"), path.parent)
            check_same(note("from_pretrained", cache, name, step), models[name])
            del step
            gc.collect()  # a model that has not been collected maps the file
    return {key: {name: statistics.median(all_) for name, all_ in its.items()} for key, its in times.items()}, size


def loading(library, model, folder: Path):
    """A function that loads the adapter and reads its values once, since tensors that a file maps are not read before.

    low_cpu_mem_usage: over a base on the meta device the adapter would be on that device otherwise.
    """

    def step():
        loaded = library.PeftModel.from_pretrained(model, folder, low_cpu_mem_usage=True)
        for value in adapters_values(loaded).values():
            value.sum()
        return loaded

    return step


def time_small(folder: Path, layers: int, adapters: int, rounds: int):
    """{what: {"ours" | "PEFT": seconds}}"""
    models = {name: adapted(library, base(SMALL, layers, "cpu"), 16) for name, library in LIBRARIES.items()}
    models["ours"].save_pretrained(folder / "one")
    for number in range(adapters):
        shutil.copytree(folder / "one", folder / "many" / f"a{number}", dirs_exist_ok=True)
    times: dict = {}

    def all_in_turn(library):
        first, *others = sorted((folder / "many").iterdir())
        model = library.PeftModel.from_pretrained(base(SMALL, layers, "cpu"), first, first.name)
        for path in others:
            model.load_adapter(path, path.name)
        return model

    restore = {
        "ours": lambda: pf.load_adapters(base(SMALL, layers, "cpu"), folder / "many"),
        "PEFT": lambda: all_in_turn(peft),
    }
    for _ in range(rounds):
        for name, model in models.items():
            with torch.no_grad():
                for value in adapters_values(model).values():
                    value.zero_()
            took, _ = seconds(lambda m=model: m.load_adapter(folder / "one", "default"))
            times.setdefault("load_adapter over a running adapter", {}).setdefault(name, []).append(took)
        check_same(models["ours"], models["PEFT"])
        for name, step in restore.items():
            empty, _ = seconds(lambda: base(SMALL, layers, "cpu"))
            took, loaded = seconds(step)
            check_same(loaded, models["PEFT"], f"a{adapters - 1}")
            what = f"{adapters} adapters of a folder, page cache warm"
            times.setdefault(what, {}).setdefault(name, []).append(max(0.0, took - empty))
    return {key: {name: statistics.median(all_) for name, all_ in its.items()} for key, its in times.items()}


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.adapter_files", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of each case (default: 5)")
    parser.add_argument("--layers", type=int, default=32, help="of the large model (default: 32)")
    parser.add_argument("--small-layers", type=int, default=30, help="of the small model (default: 30)")
    parser.add_argument("--adapters", type=int, default=8, help="in the folder (default: 8)")
    parser.add_argument("--output", type=Path, default=report.OUTPUT, help="folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", message="Could not find a config file")
    torch.set_num_threads(1)
    about, folder = machine(), options.output / "adapter_files"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        large, size = time_large(folder, options.layers, options.rounds)
        small = time_small(folder, options.small_layers, options.adapters, options.rounds)
    finally:
        shutil.rmtree(folder)
    rows, targets = [], []
    for (what, cache), its in large.items():
        beyond = its["ours"] - its["disk"]
        times = [f"{its[name]:.2f}" for name in ("disk", "ours", "PEFT")]
        rows.append((what, cache, f"{size / 1e6:.0f}", *times, f"{beyond:.2f}"))
        named = f"{what}, page cache {cache}" if cache else what
        targets.append(at_most(f"{named}, seconds beyond the disk's", beyond, 0.5))
    small_rows = [(what, *(f"{1e3 * its[name]:.1f}" for name in LIBRARIES)) for what, its in small.items()]
    swap = next(iter(small.values()))["ours"]
    targets.append(at_most("load_adapter over a running adapter, ms", 1e3 * swap, 50))
    results = {" ".join(filter(None, key)): its for key, its in large.items()} | small
    data = {"machine": about, "bytes": size, "results": results, "targets": targets}
    tables = [(report.TARGET_HEADER, targets), (HEADER, rows), (SMALL_HEADER, small_rows)]
    report.write(options.output, "adapter_files", data, tables)
    print((options.output / "adapter_files.md").read_text())


if __name__ == "__main__":
    main()
