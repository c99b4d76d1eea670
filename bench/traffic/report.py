"""The page of `python -m bench.traffic`, and the rows of its tables."""

import textwrap
from collections import Counter

from ..harness.targets import markdown
from . import eager, interpreted
from .count import CLASSES, Shape
from .interpreted import TRACED

SIZE = Shape(4096, 4096, 4096)
TARGET = {"MK": 4.4, "MN": 2.0}  # the target for ours with dropout


def outside(step, shape):
    """{class: bytes outside the two base GEMMs}, that is, without the bytes that the frozen layer moves."""
    moved, base = step.moved(), eager.frozen(shape).moved()
    return {kind: moved[kind] - base[kind] for kind in CLASSES}


def row(name, provider):
    """Bytes per element of MK and MN, exact for every shape; other bytes and total at SIZE; kernels; bytes saved."""
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
    """One row for each of our launches at TRACED: passes over the matrices, and bytes of the other tensors."""
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
    Printed by `make traffic`. The bytes are counted, not measured, and no GPU is used. bf16, dropout
    0.05, r = {TRACED.r}, every gradient but the weight's. **MK** and **MN** are bytes per element of x [M, K] and
    of y [M, N] outside the two base GEMMs, exact for every shape. The columns in MiB are for {SIZE}; the workspaces
    are those of the tiles of sm_{interpreted.ARCH} and {interpreted.PROCESSORS} multiprocessors. Each operand counts
    once per kernel. Kernels: forward + backward, including the base GEMMs. For dropout, ours lets PyTorch draw a
    seed of 8 bytes. Kept for backward: without parameters; in ours and in addmm style, 2 MK is x itself.
"""
LORA_NOTE = """
    The target is {target}. Ours moves {own}, and partial sums in workspaces, {share:.0%} of its total, which are
    written once and read once. The workspaces grow with r. If r exceeds the ranks of one tile, a kernel reads
    x or dY more than once: at r = 64, ours moves {wide}. "Vendor's GEMM" means the kernel `"blas"` for `lora_linear`
    and `lora_dx`, which adds the low-rank term to the output of the vendor's GEMM. "Onto a pass" means
    `"triton+blas"`, which writes the low-rank term first, and the vendor's GEMM adds to it. The kernels of LoRAFusion
    (arXiv:2510.00206) are taken from its source and not run. Addmm style is Unsloth's order of operations.
"""
LAUNCHES_NOTE = f"""
    Triton's interpreter records every address that a launch accesses, at {TRACED}. Reads: each element counts once
    for each line of the kernel that loads it. The last three columns are bytes at this shape. Read again: bytes
    that other tiles load a second time, from L2 if they are still there.
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
