"""What a pull leaves for the next one: files with the start of a blob, by digest.

They are locked while somebody writes or reads them, so that two pulls of one image do not write to
one file; `layerstore.session` removes those that nobody came back for. Nothing in them is trusted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

_ATTEMPTS_MAX = 100


def open_partial(directory: bytes, name: bytes) -> int | None:
    """A descriptor of the file, made where there is none; None if somebody else uses it.

    Args:
        directory: of all of them; it is made, too.
        name: of the file.
    """
    path = os.path.join(directory, name)
    for _ in range(_ATTEMPTS_MAX):
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # the directory has just been removed
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # taken, or a filesystem without locks
            os.close(fd)
            return None
        if os.fstat(fd).st_nlink:
            return fd
        os.close(fd)  # removed between the opening and the lock
    return None


def tidy(directory: bytes) -> None:
    """Remove the directory if nothing is left in it."""
    with contextlib.suppress(OSError):
        os.rmdir(directory)
