"""python -m bench.adapter_files: saving, loading and swapping files of adapters, beside PEFT and the disk's own time.

The adapter is LoRA of rank 32 on all linear layers of a Llama of 8 billion parameters. The weights of its base model
have one value each and take no memory. The disk's own time is that of the same bytes: written with the fsync calls of
our saving, or read with the page cache warm (the file is in memory) or dropped. The second table is of SmolLM2-135M
with random values: load_adapter over a running adapter, and a folder of adapters. Medians, interleaved. CPU time is
that of this process, which other processes distort less; it holds no waiting for the disk. Before a speed is reported,
the loaded values are compared with the saved ones. Writes adapter_files.json and .md.
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
HEADER = (
    "8 billion parameters, r=32", "page cache", "MB", "disk s", "ours s", "PEFT s", "disk CPU s", "ours CPU s",
    "PEFT CPU s",
)  # fmt: skip
SMALL_HEADER = ("SmolLM2-135M, r=16", "ours ms", "PEFT ms", "ours CPU ms", "PEFT CPU ms")


def base(shape: dict, layers: int, has_values: bool = True):
    """A Llama in float32 with random values, or with expanded weights: of their shapes, but of one value each."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("cpu" if has_values else "meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **shape))
    for module in () if has_values else model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(torch.zeros(()).expand(parameter.shape), False)
    return model


def adapted(library, model, r: int):
    """The base model with a LoRA adapter of random float32 values on all linear layers."""
    torch.manual_seed(0)
    model = library.get_peft_model(model, peft.LoraConfig(r=r, target_modules="all-linear", task_type="CAUSAL_LM"))
    for parameter in adapters_values(model).values():
        torch.nn.init.normal_(parameter, std=1 / 64)
    return model


def adapters_values(model, name="default"):
    return {key: p for key, p in model.named_parameters() if f".{name}." in key}


def check_same(model, other, name="default"):
    """AssertionError if the loaded adapter is not the saved one."""
    ours, theirs = adapters_values(model, name), adapters_values(other)
    assert len(ours) == len(theirs) > 0
    for key, value in theirs.items():
        assert torch.equal(ours[key.replace(".default.", f".{name}.")], value), key


def seconds(step) -> tuple[tuple[float, float], object]:
    """(wall time, CPU time) of a step, and its result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = step()
    return (time.perf_counter() - wall, time.process_time() - cpu), result


def medians(times: dict) -> dict:
    """{case: {name: (median wall time, median CPU time)}}"""
    return {
        case: {name: tuple(map(statistics.median, zip(*each, strict=True))) for name, each in its.items()}
        for case, its in times.items()
    }


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
    """{(what, page cache): {"disk" | "ours" | "PEFT": (wall, CPU)}} and the bytes of the weights."""
    models = {name: adapted(library, base(LARGE, layers, False), 32) for name, library in LIBRARIES.items()}
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
            for what, options in LOADS.items():
                if name == "ours":
                    set_page_cache(path, cache)
                    note(what, cache, "disk", path.read_bytes)
                step = loading(library, base(LARGE, layers, False), path.parent, options)
                set_page_cache(path, cache)
                check_same(note(what, cache, name, step), models[name])
                del step
                gc.collect()  # a model that has not been collected maps the file
            set_page_cache(path, cache)
            note("load_adapter over it", cache, "disk", path.read_bytes)
            set_page_cache(path, cache)
            note(
                "load_adapter over it", cache, name, lambda m=models[name], p=path.parent: m.load_adapter(p, "default")
            )
    return medians(times), size


LOADS = {"from_pretrained": {}, "from_pretrained, low_cpu_mem_usage": {"low_cpu_mem_usage": True}}


def loading(library, model, folder: Path, options: dict):
    """A function that loads the adapter and reads its values once: tensors that a file maps are not read before."""

    def step():
        loaded = library.PeftModel.from_pretrained(model, folder, **options)
        for value in adapters_values(loaded).values():
            value.sum()
        return loaded

    return step


def time_small(folder: Path, layers: int, adapters: int, rounds: int):
    """{what: {"ours" | "PEFT": (wall, CPU)}}"""
    models = {name: adapted(library, base(SMALL, layers), 16) for name, library in LIBRARIES.items()}
    models["ours"].save_pretrained(folder / "one")
    for number in range(adapters):
        shutil.copytree(folder / "one", folder / "many" / f"a{number}", dirs_exist_ok=True)
    times: dict = {}

    def in_turn(model):
        first, *others = sorted((folder / "many").iterdir())
        model = peft.PeftModel.from_pretrained(model, first, first.name)
        for path in others:
            model.load_adapter(path, path.name)
        return model

    restore = {"ours": lambda model: pf.load_adapters(model, folder / "many"), "PEFT": in_turn}
    for _ in range(rounds):
        for name, model in models.items():
            with torch.no_grad():
                for value in adapters_values(model).values():
                    value.zero_()
            took, _ = seconds(lambda m=model: m.load_adapter(folder / "one", "default"))
            times.setdefault("load_adapter over a running adapter", {}).setdefault(name, []).append(took)
        check_same(models["ours"], models["PEFT"])
        for name, step in restore.items():
            model = base(SMALL, layers)
            took, loaded = seconds(lambda f=step, m=model: f(m))
            check_same(loaded, models["PEFT"], f"a{adapters - 1}")
            times.setdefault(f"{adapters} adapters of a folder, page cache warm", {}).setdefault(name, []).append(took)
            del model, loaded
            gc.collect()
    return medians(times)


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
    rows, small_rows, targets = [], [], []
    for (what, cache), its in large.items():
        shown = [f"{its[name][clock]:.2f}" for clock in (0, 1) for name in ("disk", *LIBRARIES)]
        rows.append((what, cache, f"{size / 1e6:.0f}", *shown))
        named = f"{what}, page cache {cache}" if cache else what
        targets.append(at_most(f"{named}, CPU seconds beyond the disk's", its["ours"][1] - its["disk"][1], 0.5))
    for what, its in small.items():
        small_rows.append((what, *(f"{1e3 * its[name][clock]:.1f}" for clock in (0, 1) for name in LIBRARIES)))
    swap = next(iter(small.values()))["ours"][1]
    targets.append(at_most("load_adapter over a running adapter, CPU ms", 1e3 * swap, 50))
    results = {" ".join(filter(None, key)): its for key, its in large.items()} | small
    data = {"machine": about, "bytes": size, "results": results, "targets": targets}
    tables = [(report.TARGET_HEADER, targets), (HEADER, rows), (SMALL_HEADER, small_rows)]
    report.write(options.output, "adapter_files", data, tables)
    print((options.output / "adapter_files.md").read_text())


if __name__ == "__main__":
    main()
