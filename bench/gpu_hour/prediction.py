"""The predictions of docs/performance-model.md, parsed from its tables: the model itself needs Triton's interpreter."""

import re

from ..harness.gpus import GPUS
from .process import ROOT

PAGE = ROOT / "docs/performance-model.md"


def tables(text):
    """{heading: [{column: cell}]} of the Markdown tables, each under the last heading before it."""
    found, heading, header = {}, "", None
    for line in text.splitlines():
        if line.startswith("#"):
            heading, header = line.lstrip("# "), None
        elif not line.startswith("|"):
            header = None
        elif header is None:
            header = cells(line)
        elif not re.fullmatch(r"[|\s:-]+", line):
            found.setdefault(heading, []).append(dict(zip(header, cells(line), strict=True)))
    return found


def cells(line):
    return [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]


def gpu_of(name):
    """The name on the page for a GPU's name in PyTorch, or None: "NVIDIA H200" is H200."""
    return next((gpu.name for gpu in GPUS if gpu.name in name.upper().replace("-", " ").split()), None)


class Prediction:
    """The predicted times of one GPU; a method returns None if the page has no prediction."""

    def __init__(self, gpu, text):
        found = tables(text)
        self._gpu = gpu
        self._steps = {row["M x K x N"]: row for row in found.get(gpu, ()) if "M x K x N" in row}
        self._ops = {
            heading.rpartition(" at ")[2]: {row["op"]: row for row in rows}
            for heading, rows in found.items()
            if rows and "op" in rows[0]
        }

    def step(self, M, K, N, column):
        """The number in a column, such as "ours" or "frozen, ms"."""
        cell = self._steps.get(f"{M}x{K}x{N}", {}).get(column)
        return None if cell is None else float(cell)

    def op(self, M, K, N, r, op):
        """Microseconds of an op's launch."""
        cell = self._ops.get(f"{M}x{K}x{N} r={r}", {}).get(op, {}).get(f"{self._gpu}, us")
        return None if cell is None else float(cell.split()[0])


def prediction_for(name):
    """The Prediction for the GPU with this name in PyTorch."""
    return Prediction(gpu_of(name), PAGE.read_text() if PAGE.is_file() else "")
