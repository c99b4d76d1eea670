"""What is fastest on the user's own GPU: timed once per shape bucket, kept in memory and on disk.

One small file a decision, under $PYPEFT_FAST_CACHE, or $XDG_CACHE_HOME/pypeft_fast, or ~/.cache/pypeft_fast; written
whole or not at all, so processes share it without a lock. It holds for one architecture, one PyTorch, one Triton and
these very kernels: after an upgrade it is measured anew. PYPEFT_FAST_TUNE=0: nothing is timed and nothing is read, the
first candidate is taken. Nothing is timed while a CUDA graph is captured either.
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

_VERSION = 2  # of the meaning of a file; a file of another is measured anew
_known: dict[tuple, str] = {}
_warned = False
# How an error tells of too little memory that is no torch.OutOfMemoryError: the stable ABI (all that csrc/cuda asks of
# PyTorch is memory), csrc/cuda itself, cuBLAS.
NO_MEMORY = (" API call failed at ", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def folder():
    """Where decisions are kept; FileNotFoundError where nothing says, and the user has no home."""
    if own := os.environ.get("PYPEFT_FAST_CACHE"):
        return Path(own) / "tuning"
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "pypeft_fast" / "tuning"
    try:
        return Path.home() / ".cache" / "pypeft_fast" / "tuning"
    except RuntimeError as error:  # a container whose user is a number
        raise FileNotFoundError("no home folder and no PYPEFT_FAST_CACHE") from error


def enabled():
    return os.environ.get("PYPEFT_FAST_TUNE", "1") != "0"


def bucket(rows):
    """Row counts that share a decision: the next power of two."""
    return 1 << max(rows - 1, 0).bit_length()


def leaves_mma_sync_behind(x):
    """Whether x has more rows than decoding, of half precision, on a GPU with wgmma or tcgen05.

    Before anything is timed such products go to Triton and the vendor's library: csrc/cuda has sm_80's instructions.
    """
    many = x.shape[0] > 16 and x.element_size() == 2
    return many and x.device.type == "cuda" and torch.cuda.get_device_capability(x.device)[0] in (9, 10)


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
    """The winner on disk, or None: no file that can be read, a damaged one, or one about other candidates."""
    try:
        entry = json.loads(_path(key).read_text())
    except (FileNotFoundError, NotADirectoryError):  # if the folder cannot be, writing says so
        return None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        _warn(f"a decision of an earlier run cannot be read and is measured anew: {error}")
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
        _warn(f"what is measured here is not kept for the next run: {error}")


def _warn(text):
    """Once a process: a folder that fails for one decision fails for all."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(f"pypeft_fast: {text}", stacklevel=2)


def fastest(key, candidates, run, device):
    """The name of the fastest of {name: candidate}, by run(candidate); the first one where nothing may be timed.

    key: what the decision depends on, besides the GPU and the versions, which are added here. A candidate that asks for
    more than the GPU has, or has left at the moment, is out. If they all are, the first one is the answer: whoever runs
    it sees why, unless what was lacking is what timing takes.
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
    if not short:  # else it holds for this process: the next one may have the memory
        _write(key, names, winner, times)
    return winner


def _too_large():
    """Triton's error of a kernel that no block of this GPU can hold. Whoever raised it has imported Triton."""
    errors = sys.modules.get("triton.runtime.errors")
    return () if errors is None else (errors.OutOfResources,)


@functools.cache
def _machine(device):
    """What else a decision depends on: the architecture, its size, and every version that has a say."""
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
    """Of Triton's sources and the CUDA library: a version would not tell a developer's kernel from the one before."""
    files = sorted((Path(__file__).parent / "kernels").glob("*.py"))
    if _native.CUDA_LIBRARY_PATH is not None:
        files.append(_native.CUDA_LIBRARY_PATH)
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
