"""Checks that a tensor's storage is as large as its shape, strides and offset need: csrc/storage.h in Python.

A storage may have been freed or truncated, as FSDP2 does with parameters, while the tensor keeps its shape.
"""


def bytes_needed(tensor) -> int:
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (tensor.storage_offset() + last + 1) * tensor.element_size()


def check(op: str, name: str, tensor) -> None:
    """RuntimeError that names the op, the tensor and both sizes if the storage is too small."""
    there, needed = tensor.untyped_storage().nbytes(), bytes_needed(tensor)
    if needed > there:
        raise RuntimeError(
            f"{op}: the storage of {name} holds {there} bytes and its shape and strides need {needed}: it was freed "
            "or truncated; restore it before the call"
        )
