"""A full disk: said in the store's words, and a way out of it.

On a disk without a free block even reading the database fails, since SQLite maps a new file for it,
and so would removing an image. So the store keeps a file of no use, ROOT/reserve, and gives it up for
the commands that free space; they put it back when they have.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from layerstore.errors import NoRoom

RESERVE = b"reserve"
RESERVE_SIZE = 1 << 19
"""In bytes; a removal's part of the write-ahead log is some 100 KiB, its index 32."""


def is_full(root: bytes) -> bool:
    """Whether less is free than the reserve has."""
    found = os.statvfs(root)
    free = found.f_bfree if os.geteuid() == 0 else found.f_bavail
    return free * found.f_frsize < RESERVE_SIZE


def release(root: bytes) -> bool:
    """Give the reserve up; returns whether there was any."""
    try:
        os.unlink(os.path.join(root, RESERVE))
    except OSError:
        return False
    return True


def restore(root: bytes) -> None:
    """Have the reserve again, where there is room for it."""
    path = os.path.join(root, RESERVE)
    with contextlib.suppress(OSError):
        if os.path.exists(path) and os.stat(path).st_blocks * 512 >= RESERVE_SIZE:
            return
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, RESERVE_SIZE)
        except OSError:
            os.unlink(path)
        finally:
            os.close(fd)


@contextlib.contextmanager
def no_room(root: bytes, outcome: str = "nothing was imported") -> Iterator[None]:
    """Say it in the store's words when the disk is full.

    Args:
        root: of the store.
        outcome: what that means for whoever asked.

    Raises:
        NoRoom: it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoRoom(root, outcome) from None
    except NoRoom:
        raise NoRoom(root, outcome) from None
