"""The summary of a run: the status of each step, and the measured and predicted times."""

import json

from ..harness.targets import markdown
from . import prediction
from .found import write_whole
from .running import read

STEP_HEADER = ("step", "status", "seconds", "result")
HEADER = ("what", "measured", "predicted", "measured / predicted")
# {(provider, the adapter's dtype is the layer's, dropout): the page's column}.
COLUMNS = {
    ("ours", True, True): "ours",
    ("ours", True, False): "ours, no dropout",
    ("ours", False, True): "ours, float32 adapters",
    ("PEFT", True, True): "PEFT bf16 adapters",
    ("PEFT", False, True): "PEFT default, no autocast",
    ("addmm", True, False): "addmm style, no dropout",
}


def row(what, measured, predicted, form="{:.2f}"):
    if predicted is None:
        return what, form.format(measured), "", ""
    return what, form.format(measured), form.format(predicted), f"{measured / predicted:.2f}"


def layer_rows(found, predicted):
    """The frozen layer's milliseconds, then every provider's time / the frozen layer's."""
    rows = []
    for result in found.get("results", ()):
        case, times = result["case"], result["seconds"]
        sizes, frozen = (case["M"], case["K"], case["N"]), times.get("frozen")
        if frozen is None:
            continue
        rows.append(row(f"{result['name']}: frozen, ms", 1e3 * frozen, predicted.step(*sizes, "frozen, ms"), "{:.3f}"))
        for name, seconds in times.items():
            column = COLUMNS.get((name, "+" not in case["dtypes"], case["p"] > 0))
            if name != "frozen":
                rows.append(row(f"{result['name']}: {name} / frozen", seconds / frozen, predicted.step(*sizes, column)))
    return rows


def op_rows(found, predicted):
    """Microseconds of every op with its fastest kernel."""
    rows = []
    for name, entry in found.get("ops", {}).items():
        M, K, N, r, p = entry["case"]
        for op, times in entry["seconds"].items():
            best = min(times, key=times.get)
            expected = predicted.op(M, K, N, r, op) if p > 0 else None
            rows.append(row(f"{name}: {op}, {best}, us", 1e6 * times[best], expected, "{:.1f}"))
    return rows


def decode_rows(found):
    rows = []
    for result in found.get("results", ()):
        sizes = "x".join(map(str, result["case"][:3]))
        for how, times in (("", result["seconds"]), (" without a graph", result["without_graph"])):
            for name in times if "frozen" in times else ():
                what = f"decoding{how} {sizes} {result['dtypes']}: {name}"
                if name == "frozen":
                    rows.append(row(f"{what}, us", 1e6 * times[name], None, "{:.1f}"))
                else:
                    rows.append(row(f"{what} / frozen", times[name] / times["frozen"], None))
    return rows


def llama_rows(found):
    rows = [row(f"llama, {name}: step, ms", 1e3 * s, None, "{:.1f}") for name, s in found.get("seconds", {}).items()]
    peaks = {name: bytes_of for name, bytes_of in found.get("peak", {}).items() if bytes_of is not None}
    return rows + [row(f"llama, {name}: peak, GiB", peak / 2**30, None) for name, peak in peaks.items()]


def step_rows(results):
    return [
        (name, "not started", "", "") if result is None
        else (name, result["status"], result["seconds"], result["why"] or result["found"].get("line", ""))
        for name, result in results.items()
    ]  # fmt: skip


def measured_rows(results):
    found = {name: {} if result is None else result["found"] for name, result in results.items()}
    gpu = found["versions"].get("machine", {}).get("gpu", "")
    predicted = prediction.prediction_for(gpu)
    return [
        *layer_rows(found["layer"], predicted),
        *op_rows(found["tune"], predicted),
        *decode_rows(found["decode"]),
        *llama_rows(found["llama"]),
    ]


def write(output, names):
    """Writes OUTPUT/gpu-hour.json and gpu-hour.md from the results so far."""
    results = {name: read(output, name) for name in names}
    write_whole(output / "gpu-hour.json", json.dumps(results, indent=1) + "\n")
    machine = ((results["versions"] or {}).get("found") or {}).get("line", "unknown machine")
    steps = [tuple(str(cell).replace("|", "/") for cell in ended) for ended in step_rows(results)]
    parts = [machine, markdown(STEP_HEADER, steps)]
    rows = measured_rows(results)
    if rows:
        parts.append(markdown(HEADER, rows))
    write_whole(output / "gpu-hour.md", "\n\n".join(parts) + "\n")
