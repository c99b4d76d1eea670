"""What a weights file holds: names, shapes and dtypes from its header, and the values, checked one by one."""

import contextlib
import math
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = {
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
}  # fmt: skip
# VB-LoRA writes logits of vectors that were not chosen as minus infinity.
MAY_BE_INFINITE = ".vblora_logits"


@dataclass
class Held:
    """A tensor in the file: its shape, and its dtype by safetensors' name."""

    shape: tuple[int, ...]
    dtype: str


class File:
    """A weights file: what it holds, and `read(name)`. `path` is its name for messages.

    is_original: the tensors have the names that they have on the disk.
    """

    def __init__(self, path, held: dict[str, Held], read, is_original=True):
        self.path, self.held, self.read, self.is_original = path, held, read, is_original

    def current(self, peft_type: str) -> "File":
        """This file by the names of today; peft_type: BITFIT or BOTTLENECK, whose tensors had others."""
        from pypeft_fast.model.tuners.old_files import current_keys

        old = {key: self.read(key) for key in self.held}
        new = current_keys(peft_type, old)
        if set(new) == set(old):
            return self
        names = {dtype: name for name, dtype in (FLOATS | INTEGERS).items()}
        held = {
            key: Held(tuple(tensor.shape), names.get(tensor.dtype, str(tensor.dtype))) for key, tensor in new.items()
        }
        return File(self.path, held, new.__getitem__, is_original=False)

    def check_dtype(self, key, expected: torch.dtype | None) -> None:
        """ValueError unless the numbers are of a kind that the model has there; None: that is not known."""
        dtype = self.held[key].dtype
        if dtype in FLOATS or (dtype in INTEGERS and not (expected and expected.is_floating_point)):
            return
        where = "this model has floating ones" if expected and expected.is_floating_point else "no adapter has such"
        raise ValueError(
            f"{self.path}: {key} holds numbers of dtype {dtype}, where {where}; save it as float32, float16 or bfloat16"
        )

    def check_finite(self, key, reference: torch.Tensor | None) -> None:
        """ValueError if a value is NaN or infinite, unless the model's own values there are."""
        if self.held[key].dtype not in FLOATS or 0 in self.held[key].shape:
            return
        values = self.read(key)
        if torch.isfinite(values).all() or (MAY_BE_INFINITE in key and not values.isnan().any()):
            return
        if reference is not None and not reference.is_meta and not torch.isfinite(reference).all():
            return
        bad = ~torch.isfinite(values)
        first = [int(i) for i in bad.nonzero()[0]]
        raise ValueError(
            f"{self.path}: {key} has {int(bad.sum())} values of {math.prod(values.shape)} that are NaN or infinite, "
            f"the first {values[tuple(first)].item()} at {first}; load an earlier checkpoint"
        )


@contextlib.contextmanager
def opened_file(path, pinned):
    """A File. ValueError if it is empty, truncated, corrupt, or its header is too large."""
    try:
        with safe_open(pinned, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}
            held = {key: Held(tuple(part.get_shape()), str(part.get_dtype())) for key, part in slices.items()}
            yield File(path, held, opened.get_tensor)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or corrupt ({error}); copy or save the adapter again") from error


def plain(key: str) -> str:
    """The name without what torch.compile puts around a module."""
    return key.replace("_orig_mod.", "")


def plain_names(keys) -> dict[str, str]:
    """{name: the name without torch.compile's and DistributedDataParallel's parts}."""
    names = {key: plain(key) for key in keys}
    if names and all(name.startswith("module.") for name in names.values()):
        names = {key: name.removeprefix("module.") for key, name in names.items()}
    return names
