"""Returns freed memory to the system."""

import ctypes


def give_back_freed() -> None:
    """Returns freed memory to the system if the C library is glibc, which otherwise keeps freed blocks in its heap."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
