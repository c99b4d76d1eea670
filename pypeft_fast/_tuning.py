"""What is fastest on the user's own GPU: timed once per shape bucket, kept in memory and on disk.

One small file a decision, under $PYPEFT_FAST_CACHE, or $XDG_CACHE_HOME/pypeft_fast, or ~/.cache/pypeft_fast; written
whole or not at all, so processes share it without a lock. PYPEFT_FAST_TUNE=0: nothing is timed and nothing is read,
the first candidate is taken. Nothing is timed while a CUDA graph is captured either.
"""

import contextlib
import hashlib
import json
import os
import statistics
import tempfile
import warnings
from pathlib import Path

import torch

_VERSION = 1  # of the meaning of a file; a file of another is measured anew
_known: dict[tuple, str] = {}


def folder():
    """Where decisions are kept."""
    if own := os.environ.get("PYPEFT_FAST_CACHE"):
        return Path(own) / "tuning"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pypeft_fast" / "tuning"


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
    """The winner on disk, or None: no file that can be read, a torn one, or one about other candidates."""
    try:
        entry = json.loads(_path(key).read_text())
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    ours = isinstance(entry, dict) and entry.get("key") == repr(key) and entry.get("candidates") == names
    return entry["winner"] if ours and entry.get("winner") in names else None


def _write(key, names, winner, times):
    path = _path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = {"key": repr(key), "candidates": names, "winner": winner, "milliseconds": times}
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        json.dump(entry, file, indent=1)
    os.replace(file.name, path)


def fastest(key, candidates, device, unfit=()):
    """The name of the fastest of {name: function of no arguments}; the first one where nothing may be timed.

    key: what the decision depends on, besides the GPU and the versions, which are added here.
    unfit: errors by which a candidate says that it does not fit this GPU; it is out, unless it is the first one.
    """
    names = list(candidates)
    if len(names) == 1 or not enabled():
        return names[0]
    key = (*key, _machine(device))
    if key in _known and _known[key] in candidates:
        return _known[key]
    winner = _read(key, names)
    if winner is None:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return names[0]
        times = {names[0]: milliseconds(candidates[names[0]], device)}
        for name in names[1:]:
            with contextlib.suppress(*unfit):
                times[name] = milliseconds(candidates[name], device)
        winner = min(times, key=times.get)
        try:
            _write(key, names, winner, times)
        except OSError as error:
            warnings.warn(f"pypeft_fast: the tuning of {key[0]} is not kept: {error}", stacklevel=2)
    _known[key] = winner
    return winner


def _machine(device):
    if device.type != "cuda":
        return (device.type, torch.__version__)
    properties = torch.cuda.get_device_properties(device)
    return (properties.major, properties.minor, properties.multi_processor_count, torch.__version__)
