"""The two files of an adapter's folder, and the protocol by which they change as one.

A save brings both files whole under other names, then renames the weights, then the config. The first rename is the
moment of change: before it the old pair is there untouched, and after it a reader takes the config from its pending
file until the second rename has happened. That file's name holds the fingerprint of what lies in the folder between the
two, the old config and the new weights: as soon as anything else, such as PEFT, has written either, it is out of force.
"""

import hashlib
import os
import re

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
SCRATCH = ".saving-"  # how a saver's own folder begins
_PENDING = re.compile(rf"{re.escape(CONFIG)}\.[0-9a-f]{{32}}\.new")
_HEADER = 100_000_000  # bytes, the most that safetensors reads
_SAMPLE = 1024  # bytes of every tensor


def pending_name(config: bytes | None, weights: int) -> str:
    """The name of the config that is in force while this config and these weights (a descriptor) lie beside it.

    Of the weights the header and the start of every tensor count: two saves differ in some of them, and reading all of
    a large file would cost more than writing it.
    """
    digest = hashlib.sha256(hashlib.sha256(config or b"").digest())
    size = os.fstat(weights).st_size
    length = int.from_bytes(os.pread(weights, 8, 0), "little")
    header = os.pread(weights, min(length, _HEADER, size), 8)
    digest.update(size.to_bytes(8, "little") + header)
    for offsets in re.finditer(rb'"data_offsets"\s*:\s*\[\s*(\d{1,18})', header):
        digest.update(os.pread(weights, _SAMPLE, 8 + length + int(offsets[1])))
    return f"{CONFIG}.{digest.hexdigest()[:32]}.new"


def pending_names(folder) -> list[str]:
    return [name for name in os.listdir(folder) if _PENDING.fullmatch(name)]


def read_all(descriptor: int) -> bytes:
    with open(os.dup(descriptor), "rb") as file:
        file.seek(0)
        return file.read()
