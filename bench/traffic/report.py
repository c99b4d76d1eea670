"""The page that `python -m bench.traffic` prints, and the rows behind it."""

import textwrap
from collections import Counter

from ..harness.targets import markdown
from . import eager, interpreted
from .count import CLASSES, Shape
from .interpreted import TRACED

SIZE = Shape(4096, 4096, 4096)
TARGET = {"MK": 4.4, "MN": 2.0}  # of ours with dropout


def outside(step, shape):
    """The bytes by class outside the two base GEMMs: what the frozen layer moves is taken off."""
    moved, base = step.moved(), eager.frozen(shape).moved()
    return {kind: moved[kind] - base[kind] for kind in CLASSES}


def row(name, provider):
    """Bytes an element of MK and MN, exact for every shape; the rest and the total at SIZE; kernels; bytes kept."""
    step, large = provider(TRACED), provider(SIZE)
    part, whole = outside(step, TRACED), outside(large, SIZE)
    each = {kind: part[kind] / TRACED.elements[kind] for kind in ("MK", "MN")}
    kept = {kind: step.saved[kind] / TRACED.elements[kind] for kind in ("MK", "MN")}
    if sum(each[k] * SIZE.elements[k] for k in each) != whole["MK"] + whole["MN"] + whole["NK"] or part["NK"]:
        raise RuntimeError(
            f"{name}: what it moves is not a multiple of MK and MN: {part} at {TRACED}, {whole} at {SIZE}"
        )
    return {
        "name": name,
        **each,
        "workspace": whole["workspace"],
        "low rank": whole["low rank"],
        "bytes": sum(whole.values()),
        "forward": step.launches(False),
        "backward": step.launches(True),
        "kernels": [k.name for k in step.kernels],
        "saved": kept,
        "saved bytes": sum(large.saved.values()),
    }


def launches(methods):
    """A row for each launch of ours at TRACED: passes over the matrices, and the bytes of all else."""
    rows = []
    for label, method in methods.items():
        for traced in interpreted.traced(method, TRACED.r):
            launch, read, written = traced.launch, Counter(), Counter()
            for name, (_, kind) in traced.operands.items():
                read[kind] += launch.once[name]
                written[kind] += launch.stored[name]
            rows.append({
                "kernel": launch.kernel,
                "of": label,
                "reads": _coefficients({kind: read[kind] / n for kind, n in TRACED.elements.items()}),
                "writes": _coefficients({kind: written[kind] / n for kind, n in TRACED.elements.items()}),
                "low rank": read["low rank"] + written["low rank"],
                "workspaces": read["workspace"] + written["workspace"],
                "read again": launch.loaded.total() - launch.once.total(),
            })  # fmt: skip
    return rows


MIB = 1 << 20
HEADER = ("", "MK", "MN", "workspaces, MiB", "low rank, MiB", "total, MiB", "kernels", "kept for backward", "kept, MiB")


def _coefficients(each):
    return " + ".join(f"{each[kind]:.4g} {kind}" for kind in ("MK", "MN", "NK") if each.get(kind)) or "0"


def cells(row):
    sizes = (f"{row[kind] / MIB:.1f}" for kind in ("workspace", "low rank", "bytes"))
    kernels = f"{row['forward']} + {row['backward']}"
    if "randint" in row["kernels"]:
        kernels = f"{row['forward'] - 1} + {row['backward']}, and the seed"
    kept = _coefficients(row["saved"]), f"{row['saved bytes'] / MIB:.1f}"
    return row["name"], f"{row['MK']:.4g}", f"{row['MN']:.4g}", *sizes, kernels, *kept


INTRODUCTION = f"""
    Printed by `make traffic`. Counted, not measured: no speed, no GPU. bf16, dropout 0.05, r = {TRACED.r},
    every gradient but the weight's. **MK** and **MN** are bytes for each element of x [M, K] and of y [M, N]
    outside the two base GEMMs, exact at every shape; MiB are at {SIZE}, the workspaces with the tiles of
    sm_{interpreted.ARCH} and {interpreted.PROCESSORS} multiprocessors. Each operand counts once a kernel.
    Kernels: forward + backward, the base GEMMs among them; for its dropout ours has PyTorch draw a seed, 8
    bytes. Kept for backward: parameters do not count; of ours and of addmm style, 2 MK is x itself.
"""
LORA_NOTE = """
    The target is {target}. Ours moves {own}, and in workspaces partial sums, {share:.0%} of its total, written
    once and read back once. They grow with r, and past the ranks of one tile so does what is read of x and dY:
    at r = 64, {wide}. "Vendor's GEMM" is what `"blas"` does in `lora_linear` and `lora_dx`: the low-rank term is
    added to the product's output. LoRAFusion (arXiv:2510.00206) is read off its source, not run. Addmm style is
    Unsloth's order of operations.
"""
LAUNCHES_NOTE = f"""
    Every address that a launch touches is noted in Triton's interpreter, at {TRACED}. Reads: each element once
    for each line of the kernel that loads it. The last three columns are bytes at that shape; read again: what
    other tiles load a second time, from L2 where it holds them.
"""


def _paragraph(text):
    return textwrap.fill(" ".join(text.split()), 120)


def report(lora, ia3, traced):
    rows = {r["name"]: r for r in lora}
    ours = rows["ours"]
    note = LORA_NOTE.format(
        target=_coefficients(TARGET), own=_coefficients(ours), wide=_coefficients(rows["ours, r = 64"]),
        share=ours["workspace"] / ours["bytes"],
    )  # fmt: skip
    parts = [
        "# Memory traffic of one layer, forward and backward",
        _paragraph(INTRODUCTION),
        "## LoRA",
        markdown(HEADER, map(cells, lora)),
        _paragraph(note),
        "## IA3",
        markdown(HEADER, map(cells, ia3)),
        "## Launches of ours",
        _paragraph(LAUNCHES_NOTE),
        markdown(tuple(traced[0]), (r.values() for r in traced)),
    ]
    return "\n\n".join(parts) + "\n"
