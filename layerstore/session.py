"""One import's place and locks, and what is left of imports that died.

    ROOT/lock       flock(2): shared by every import, exclusive by collection
    ROOT/tmp/NAME/  an import's scratch; the import holds an exclusive flock on the directory
    ROOT/tmp/downloads/  blobs of which a pull has a part, by digest, for the next pull; a pull holds
                    an exclusive flock on each that it uses

An import that dies leaves its directory without a lock. The next one removes it. If it died while
giving objects their names (`placing` is there), a collection removes the objects that nothing
refers to; where imports are running it is put off (`tmp/collect`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import time
import uuid
from collections.abc import Iterator

_PLACING = b"placing"
_OBJECTS = b"objects"
_COLLECT = b"collect"
DOWNLOADS = b"downloads"
_DOWNLOADS_SECONDS_MAX = 24 * 3600
"""How long what a pull left is kept for the next one."""

_FLAGS = struct.Struct("l")  # the ioctl's argument is an int, its number says long (linux/fs.h)
_GET_FLAGS = 0x80000000 | _FLAGS.size << 16 | ord("f") << 8 | 1
_SET_FLAGS = 0x40000000 | _FLAGS.size << 16 | ord("f") << 8 | 2
_TOPDIR = 0x00020000


class Session:
    """An import's directory, while the context lasts.

    Args:
        root: of the store.
    """

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._tmp = os.path.join(root, b"tmp")
        self.directory = os.path.join(self._tmp, uuid.uuid4().hex.encode())
        self.objects = os.path.join(self.directory, _OBJECTS)
        self.scratch = os.path.join(self.directory, b"scratch")
        self._locks: list[int] = []

    def __enter__(self) -> Session:
        try:
            self._locks.append(lock(os.path.join(self._root, b"lock"), fcntl.LOCK_SH, make=True))
            # Whoever looks for what dead imports left must not see the directory before its lock.
            tmp = lock(self._tmp, fcntl.LOCK_SH)
            try:
                _spread(tmp)
                os.mkdir(self.directory, 0o700)
                self._locks.append(lock(self.directory, fcntl.LOCK_EX))
            finally:
                os.close(tmp)
            os.mkdir(self.objects)
            os.mkdir(self.scratch)
        except BaseException:
            self.__exit__()
            raise
        return self

    def placing(self) -> None:
        """From now on objects may get names that nothing refers to yet."""
        os.close(os.open(os.path.join(self.directory, _PLACING), os.O_WRONLY | os.O_CREAT, 0o600))

    def committed(self) -> None:
        """Everything that was placed is referred to."""
        os.unlink(os.path.join(self.directory, _PLACING))

    def __exit__(self, *_: object) -> None:
        try:
            if not os.path.exists(os.path.join(self.directory, _PLACING)):
                _remove(self.directory)
        finally:
            self._release()

    def _release(self) -> None:
        while self._locks:
            os.close(self._locks.pop())


def _remove(directory: bytes) -> None:
    """Remove an import's directory. Its objects go one by one: rmtree makes a list of them first."""
    with (
        contextlib.suppress(OSError),
        os.scandir(os.path.join(directory, _OBJECTS)) as entries,
    ):
        for entry in entries:
            os.unlink(entry.path)
    shutil.rmtree(directory, ignore_errors=True)


def _spread(directory: int) -> None:
    """Have ext4 put each new directory in here into a block group of its own (chattr(1), +T).

    Where inodes were deleted in the group that it shares with its parent, ext4 without a journal looks
    at every one of them, for minutes, each time a file is made: 450 us instead of 25 for each object of
    an import that follows a removal. With a journal imports that run at once keep out of each other's
    way. Other filesystems know no such flag, and need none.
    """
    with contextlib.suppress(OSError):
        flags = bytearray(_FLAGS.size)
        fcntl.ioctl(directory, _GET_FLAGS, flags)
        (before,) = _FLAGS.unpack(flags)
        if not before & _TOPDIR:
            fcntl.ioctl(directory, _SET_FLAGS, _FLAGS.pack(before | _TOPDIR))


def lock(path: bytes, how: int, *, make: bool = False) -> int:
    """A descriptor that holds a flock on a file or a directory.

    Args:
        how: LOCK_SH or LOCK_EX, with LOCK_NB perhaps.
        make: a file that is not there is made.

    Raises:
        FileNotFoundError: it is not there, and `make` is not set.
        BlockingIOError: LOCK_NB, and somebody holds it.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (os.O_CREAT if make else 0), 0o600)
    try:
        fcntl.flock(fd, how)
    except BaseException:
        os.close(fd)
        raise
    return fd


def try_lock(path: bytes, *, make: bool = False) -> int | None:
    """As `lock`, exclusive, but None at once if somebody holds it."""
    try:
        return lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB, make=make)
    except BlockingIOError:
        return None


def sweep(root: bytes, *, downloads: bool = False) -> bool:
    """Remove what dead imports left in tmp/; returns whether a collection is due.

    Args:
        root: of the store.
        downloads: also what a pull could go on with, however new it is.
    """
    tmp = os.path.join(root, b"tmp")
    guard = lock(tmp, fcntl.LOCK_EX)
    try:
        for name in os.listdir(tmp):
            path = os.path.join(tmp, name)
            if name == _COLLECT:
                continue
            if name == DOWNLOADS:
                _sweep_downloads(path, 0 if downloads else _DOWNLOADS_SECONDS_MAX)
                continue
            try:
                held = try_lock(path)
            except FileNotFoundError:  # an import that has ended since
                continue
            if held is None:
                continue
            try:
                if os.path.exists(os.path.join(path, _PLACING)):
                    want_collection(root)
                _remove(path)
            finally:
                os.close(held)
        return os.path.exists(os.path.join(tmp, _COLLECT))
    finally:
        os.close(guard)


def _sweep_downloads(directory: bytes, seconds_max: float) -> None:
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        with contextlib.suppress(FileNotFoundError):
            if time.time() - os.stat(path).st_mtime < seconds_max:
                continue
            held = try_lock(path)
            if held is not None:
                os.unlink(path)
                os.close(held)
    # A pull makes it anew if it goes meanwhile.
    with contextlib.suppress(OSError):
        os.rmdir(directory)


def want_collection(root: bytes) -> None:
    """Note that there may be objects or indexes nothing refers to."""
    os.close(os.open(os.path.join(root, b"tmp", _COLLECT), os.O_WRONLY | os.O_CREAT, 0o600))


@contextlib.contextmanager
def no_imports(root: bytes) -> Iterator[None]:
    """Wait for the end of all imports, and keep others waiting while the context lasts."""
    held = lock(os.path.join(root, b"lock"), fcntl.LOCK_EX, make=True)
    try:
        yield
    finally:
        os.close(held)


@contextlib.contextmanager
def exclusive(root: bytes) -> Iterator[bool]:
    """Keep imports out while the context lasts; False at once if one is running."""
    held = try_lock(os.path.join(root, b"lock"), make=True)
    try:
        yield held is not None
        if held is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(root, b"tmp", _COLLECT))
    finally:
        if held is not None:
            os.close(held)
