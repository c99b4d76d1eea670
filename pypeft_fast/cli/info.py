"""`pypeft-fast info`: the kernels that can run on this machine, and why the others cannot."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path

import torch

import pypeft_fast

from .. import _native, _op, _own, _tuning  # noqa: F401 - importing _own registers all ops
from ..finetune.errors import as_user_error
from .terminal import say

PACKAGES = ("torch", "triton", "transformers", "safetensors", "accelerate", "peft")

LIBRARIES = {"native_library": _native.LIBRARY_PATH, "cuda_library": _native.CUDA_LIBRARY_PATH}


def run(arguments) -> None:
    facts = collect()
    if arguments.json:
        say(json.dumps(facts, indent=2), keep="\n")
        return
    reasons = {device: _reasons(ops) for device, ops in facts["kernels"].items()}
    shown_below = {reason for of_device in reasons.values() for _, reason in of_device}
    for section in ("versions", "machine", "build"):
        say(section)
        for name, value in facts[section].items():
            text = ", ".join(value) if isinstance(value, list) else value
            if text in shown_below:
                text = f"{LIBRARIES[name]}: {text}" if LIBRARIES.get(name) else "none"
            say(f"  {name:<16} {text}")
    for device, ops in facts["kernels"].items():
        for op, about in ops.items():
            say(f"{op} on {device} tensors: {about['choice']}")
            say(f"  available        {', '.join(_available(about['kernels']))}")
        if reasons[device]:
            say(f"not available on {device} tensors")
        for (kernel, reason), of_ops in reasons[device].items():
            having = [op for op, about in ops.items() if kernel in about["kernels"]]
            say(f"  {kernel:<16} {reason}" + ("" if of_ops == having else f" ({', '.join(of_ops)})"))


def collect() -> dict:
    """Everything that `info` prints, as plain data. UserError if PYPEFT_FAST_CPU names an ISA that this CPU lacks."""
    with as_user_error("the C++ kernels cannot run", (RuntimeError,)):
        cpu_kernels = "none" if _native.missing_cpu() else _native.cpu_isa()
    return {
        "versions": {
            "pypeft_fast": pypeft_fast.__version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
        "machine": {
            "system": platform.platform(),
            "cpu": _cpu_model(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or "none",
        },
        "build": {
            "location": str(Path(pypeft_fast.__file__).parent),
            "native_library": _native.missing_cpu() or str(_native.LIBRARY_PATH),
            "cpu_kernels": cpu_kernels,
            "cuda_library": _native.missing_cuda() or str(_native.CUDA_LIBRARY_PATH),
            "torch_cuda": torch.version.cuda or "none: a CPU build",
        },
        "kernels": {device: _kernels(device) for device in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]},
    }


def _kernels(device: str) -> dict[str, dict]:
    """{op: {"choice": which kernel runs on this device's tensors, "kernels": {kernel: "available" or why not}}}; the
    kernels are in order of preference."""
    forced = os.environ.get("PYPEFT_FAST_KERNEL")
    found = {}
    for op in _op.OPS.values():
        states = {}
        for kernel in op.kernels:
            devices = (*(kernel.devices or (device,)), *(kernel.interpreted if forced else ()))
            elsewhere = device not in devices
            states[kernel.name] = (
                kernel.missing() or (elsewhere and f"runs on {', '.join(kernel.devices)}") or "available"
            )
        if forced is None and op.has_parts(device):
            choice = _of_parts(states)
        else:
            choice = _timed(states) if forced is None and op.is_timed(device) else _choice(states, forced)
        found[op.name] = {"choice": choice, "kernels": states}
    return found


def _available(states: dict[str, str]) -> list[str]:
    return [name for name, state in states.items() if state == "available"]


def _reasons(ops: dict[str, dict]) -> dict[tuple[str, str], list[str]]:
    """{(kernel, why it is not available): the ops with this kernel and reason}, so that each reason is printed once."""
    found = {}
    for op, about in ops.items():
        for kernel, state in about["kernels"].items():
            if state != "available":
                found.setdefault((kernel, state), []).append(op)
    return found


def _timed(states: dict[str, str]) -> str:
    """The choice of an op that times its kernels: the first call with each shape finds the fastest kernel."""
    fast = [name for name in _available(states) if name != "reference"]
    if len(fast) == 1:
        return fast[0]
    if _tuning.enabled():
        return f"the fastest of {', '.join(fast)}, timed per shape"
    # Without timing the first kernel runs. But on a GPU with wgmma or tcgen05, Triton's kernel runs for calls with many
    # rows, since csrc/cuda uses mma.sync.
    return f"{fast[0]} or {fast[1]}, by the shape, untimed" if fast[0] == "cuda" else f"{fast[0]}, untimed"


def _of_parts(states: dict[str, str]) -> str:
    """The choice of an op on a GPU that consists of other ops."""
    return f"{'cuda for a small product, else ' if states.get('cuda') == 'available' else ''}the ops of its parts"


def _choice(states: dict[str, str], forced: str | None) -> str:
    if forced is None:
        return _available(states)[0]
    state = states.get(forced, "the op has no such kernel")
    return f"{forced} (PYPEFT_FAST_KERNEL)" if state == "available" else f"none: PYPEFT_FAST_KERNEL={forced}: {state}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
