"""Folders that one saver at a time may change, by flock: the kernel releases it when a saver is killed."""

import contextlib
import errno
import fcntl
import os


@contextlib.contextmanager
def locked(folder):
    """Waits for the folder's lock and holds it in the block. A file system that has no locks goes without."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # ENOTSUP, ENOLCK, on NFS EBADF: there is nothing to wait for
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing would not do where a forked child has it open too
        os.close(descriptor)


def hold(folder) -> int:
    """A descriptor that holds the folder's lock until it is closed; nobody else waits for this one."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def is_abandoned(folder) -> bool:
    """Whether nobody holds this folder. False also where that cannot be known, and for a link."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES):
            return False
        raise
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
