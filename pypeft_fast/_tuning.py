"""Autotuning: times the candidates on the user's GPU once per shape bucket, and caches the fastest.

Each decision is one small file under $PYPEFT_FAST_CACHE, or $XDG_CACHE_HOME/pypeft_fast, or ~/.cache/pypeft_fast. The
file is written atomically, so processes share it without a lock. It is valid for one architecture, one PyTorch, one
Triton and one version of the kernels. PYPEFT_FAST_TUNE=0: nothing is timed or read, and the first candidate is taken.
Nothing is timed while a CUDA graph is captured either.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import statistics
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from . import _native

_VERSION = 2  # version of the file format; a file of another version is ignored
_known: dict[tuple, str] = {}
_warned = False
# Out-of-memory errors that are not torch.OutOfMemoryError: from the stable ABI (csrc/cuda asks PyTorch for
# nothing but memory), from csrc/cuda itself, from cuBLAS.
NO_MEMORY = (" API call failed at ", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def folder():
    """The folder of the decisions. FileNotFoundError if no variable sets it and the user has no home folder."""
    if own := os.environ.get("PYPEFT_FAST_CACHE"):
        return Path(own) / "tuning"
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "pypeft_fast" / "tuning"
    try:
        return Path.home() / ".cache" / "pypeft_fast" / "tuning"
    except RuntimeError as error:  # in a container the user may be a bare number
        raise FileNotFoundError("no home folder and no PYPEFT_FAST_CACHE") from error


def enabled():
    return os.environ.get("PYPEFT_FAST_TUNE", "1") != "0"


def bucket(rows):
    """Row counts that share a decision: the next power of two."""
    return 1 << max(rows - 1, 0).bit_length()


def leaves_mma_sync_behind(args):
    """Whether one of an op's matrices is in half precision, with more rows than in decoding, on a GPU with wgmma or
    tcgen05. The first argument has the rows; a float32 adapter's gradient may have them beside an x in bfloat16.

    Untimed, such products go to Triton and the vendor's library: csrc/cuda uses the instructions of sm_80.
    """
    first = args[0]
    if first.shape[0] <= 16 or first.device.type != "cuda":
        return False
    half = any(isinstance(a, torch.Tensor) and a.element_size() == 2 for a in args)
    return half and torch.cuda.get_device_capability(first.device)[0] in (9, 10)


def milliseconds(function, device):
    """Median of 11 runs on the device, after two to warm up, each with a cold L2."""
    flush = torch.empty(1 << 28, dtype=torch.int8, device=device)
    times = []
    for _ in range(13):
        flush.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times[2:])


def _path(key):
    return folder() / (hashlib.sha256(repr((_VERSION, key)).encode()).hexdigest()[:24] + ".json")


def _read(key, names):
    """The winner on disk. None if the file is missing, damaged, or lists other candidates."""
    try:
        entry = json.loads(_path(key).read_text())
    except (FileNotFoundError, NotADirectoryError):  # if the folder cannot be made, _write warns
        return None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        _warn(f"a decision of an earlier run cannot be read and is measured again: {error}")
        return None
    ours = isinstance(entry, dict) and entry.get("key") == repr(key) and entry.get("candidates") == names
    return entry["winner"] if ours and entry.get("winner") in names else None


def _write(key, names, winner, times):
    entry = {"key": repr(key), "candidates": names, "winner": winner, "milliseconds": times}
    try:
        path = _path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
            try:
                json.dump(entry, file, indent=1)
                file.close()
                os.replace(file.name, path)
            except OSError:
                os.unlink(file.name)
                raise
    except OSError as error:
        _warn(f"the tuning result cannot be saved for the next run: {error}")


def _warn(text):
    """Warns once a process: a folder that fails for one decision fails for all."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(f"pypeft_fast: {text}", stacklevel=2)


def fastest(key, candidates, run, device):
    """The name of the fastest of {name: candidate}, by run(candidate); the first one where nothing may be timed.

    key: what the decision depends on, besides the GPU and the versions, which are added here. A candidate that
    needs more than the GPU has, or has free now, is dropped. If all are dropped, the first one is returned: the caller
    gets its error when it runs it, unless only the timing itself ran out of memory.
    """
    if len(candidates) == 1 or not enabled():
        return next(iter(candidates))
    key = (*key, _machine(device))
    winner = _known.get(key)
    if winner not in candidates:
        names = list(candidates)
        winner = _read(key, names)
        if winner is None:
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                return names[0]
            winner = _measured(key, candidates, run, device)
        _known[key] = winner
    return winner


def _measured(key, candidates, run, device):
    names, times, short = list(candidates), {}, False
    for name in names:
        try:
            times[name] = milliseconds(functools.partial(run, candidates[name]), device)
        except _too_large():
            continue
        except RuntimeError as error:
            if not (isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in NO_MEMORY)):
                raise
            short = True
    winner = min(times, key=times.get, default=names[0])
    if not short:  # else keep it in this process only: the next one may have more memory
        _write(key, names, winner, times)
    return winner


def _too_large():
    """Triton's error for a kernel that needs more resources than a block has; () if Triton is not imported."""
    errors = sys.modules.get("triton.runtime.errors")
    return () if errors is None else (errors.OutOfResources,)


@functools.cache
def _machine(device):
    """What else a decision depends on: the architecture, the number of SMs, and the versions."""
    made_of = (torch.__version__, _triton_version(), _kernels_digest())
    if device.type != "cuda":
        return (device.type, *made_of)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        architecture = properties.gcnArchName.partition(":")[0]
    else:
        architecture = f"sm_{properties.major}{properties.minor}"
    return (architecture, properties.multi_processor_count, *made_of)


def _triton_version():
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("triton")
    return None


@functools.cache
def _kernels_digest():
    """A hash of the Triton sources and the CUDA library: the version does not change with a developer's edit."""
    files = sorted((Path(__file__).parent / "kernels").glob("*.py"))
    if _native.CUDA_LIBRARY_PATH is not None:
        files.append(_native.CUDA_LIBRARY_PATH)
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
