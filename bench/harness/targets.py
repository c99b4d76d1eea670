"""The performance targets, one per row, and whether the measurements of a run reach the targets."""

import itertools
import math


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def at_most(what, value, limit):
    return what, f"{value:.2f}", f"<= {limit:g}", "pass" if value <= limit else "falls short"


def at_least(what, value, limit):
    return what, f"{value:.2f}", f">= {limit:g}", "pass" if value >= limit else "falls short"


def ratios(results, over, under, **wanted):
    """[time of `over` / time of `under`] for each result whose case has the wanted fields."""
    chosen = [r["seconds"] for r in results if all(r["case"][k] == v for k, v in wanted.items())]
    return [t[over] / t[under] for t in chosen if over in t and under in t]


def cliff(results, wanted):
    """The largest ratio of a rank's time per FLOP to that of the next smaller rank."""
    chosen = [r for r in results if all(r["case"][k] == v for k, v in wanted.items())]
    chosen.sort(key=lambda r: r["case"]["r"])
    costs = [r["seconds"]["ours"] / r["flops"] for r in chosen]
    return max(b / a for a, b in itertools.pairwise(costs))


def layer_rows(results):
    """[(what, measured, target, verdict)]; a row without a measured case is left out."""
    rows, lora = [], {"kind": "lora", "r": 16}
    for dtypes, mean, worst in (("float32", 1.08, 1.14), ("bfloat16+float32", 1.12, 1.2), ("bfloat16", 1.12, 1.2)):
        found = ratios(results, "ours", "frozen", dtypes=dtypes, p=0.05, threads=1, **lora)
        if found:
            rows.append(at_most(f"time / frozen layer, p=0.05, {dtypes}, mean", geometric_mean(found), mean))
            rows.append(at_most(f"time / frozen layer, p=0.05, {dtypes}, worst", max(found), worst))
        free = ratios(results, "ours p=0", "ours", dtypes=dtypes, p=0.05, threads=1, **lora)
        if free:
            rows.append(at_most(f"p=0 against p=0.05, {dtypes}, worst", max(free), 1.0))
        peft = ratios(results, "PEFT", "ours", dtypes=dtypes, p=0.0, threads=1, **lora)
        if peft:
            rows.append(at_least(f"speed-up over PEFT, p=0, {dtypes}, worst", min(peft), 1.0))
        two = ratios(results, "PEFT", "ours", dtypes=dtypes, p=0.05, threads=2, **lora)
        if two:
            limit = 1.25 if dtypes == "float32" else 1.5
            rows.append(at_least(f"speed-up over PEFT, two threads, {dtypes}, mean", geometric_mean(two), limit))
    ranked = {"kind": "lora", "M": 512, "K": 576, "N": 1536, "p": 0.05, "threads": 1, "dtypes": "float32"}
    sweep = ratios(results, "PEFT", "ours", **ranked)
    if len(sweep) > 1:
        rows.append(at_least("speed-up over PEFT, ranks 4 to 256, worst", min(sweep), 1.0))
        rows.append(at_most("seconds a FLOP, a rank against the next smaller one, worst", cliff(results, ranked), 1.1))
    return rows


def markdown(header, rows):
    """A Markdown table whose columns are as wide as their widest cell, so that the source is readable too."""
    lines = [[str(cell) for cell in line] for line in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines)
