"""A real directory and what is below it, addressed by paths relative to it. Knows nothing of marks.

Paths may be longer than PATH_MAX: the layers' own paths never count, and a tree deeper than one system call reaches is
walked in steps. Nothing here follows a symlink. Any thread.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat as stat_module
from collections.abc import Iterator
from typing import NamedTuple

from overlayfs_py import syscalls
from overlayfs_py.layers.place import Named

log = logging.getLogger(__name__)

# PATH_MAX is 4096 with the NUL; /proc/self/fd/N/ goes before a path where xattrs are meant.
_STEP_MAX = 4000
_STEPS_MAX = 16

DT_UNKNOWN, DT_FIFO, DT_CHR, DT_DIR, DT_BLK, DT_REG, DT_LNK, DT_SOCK, DT_WHT = (
    0,
    1,
    2,
    4,
    6,
    8,
    10,
    12,
    14,
)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Row(NamedTuple):
    """One name of a real directory; `type` is a DT_* number (DT_WHT: a whiteout), `ino` is the layer's own."""

    name: bytes
    type: int
    ino: int


class PrivateMount:
    """A private clone of the part of a mount below `base`; lives until it is closed.

    As the kernel's overlayfs sees its layers: what else is mounted below does not show, and reading through a
    read-only clone updates no access time.
    """

    def __init__(self, fd: int, base: bytes) -> None:
        self._fd = fd
        self._base = base

    @classmethod
    def of(cls, base: bytes, read_only: bool) -> PrivateMount | None:
        """None where this process may not, or the kernel cannot, clone mounts.

        Raises:
            OSError: there is no such directory.
        """
        try:
            return cls(syscalls.clone_tree(base, read_only), base)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP):
                raise
            log.debug("%r: no private clone of its mount (%s)", base, error.strerror)
            return None

    def open(self, path: bytes) -> int | None:
        """A descriptor of the directory `path`, at or below the base; None if another mount lies in between, so that
        what the clone has there is another directory."""
        expected = os.stat(path)
        relative = os.path.relpath(path, self._base)
        try:
            fd = os.open(relative, _DIRECTORY, dir_fd=self._fd)
        except OSError:
            return None
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != (expected.st_dev, expected.st_ino):
            os.close(fd)
            return None
        return fd

    def has(self, path: bytes) -> bool:
        fd = self.open(path)
        if fd is not None:
            os.close(fd)
        return fd is not None

    def close(self) -> None:
        os.close(self._fd)


class _Step:
    """A directory on the way to deep paths, open as long as somebody is on that way."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class Tree:
    """The directory at `path`.

    Args:
        path: of the directory, absolute or relative to the working directory.
        read_only: whether the tree is only read.
        clone: the private mount to reach it through, kept open by the caller; None for the directory as it is.

    Raises:
        OSError: the directory is missing or cannot be opened.
    """

    def __init__(self, path: bytes, read_only: bool, clone: PrivateMount | None) -> None:
        self.path = os.path.abspath(path)
        fd = None if clone is None else clone.open(self.path)
        quiet = fd is not None and read_only
        self.fd = os.open(self.path, _DIRECTORY) if fd is None else fd
        self.dev = os.fstat(self.fd).st_dev
        self._steps: dict[bytes, _Step] = {}
        # On a quiet clone nothing needs to be asked for.
        self._read_only = read_only
        self._noatime = not quiet

    def close(self) -> None:
        self.forget_steps()
        os.close(self.fd)

    def at(self, path: bytes) -> Named:
        """Where `path` (b"" for the root) is, short enough for one system call."""
        if len(path) <= _STEP_MAX:
            return Named(self.fd, path or b".")
        head, tail = _split(path)
        step = self._steps.get(head)
        if step is None:
            if len(self._steps) >= _STEPS_MAX:
                self.forget_steps()
            step = self._steps[head] = _Step(self.at(head).open(os.O_PATH | os.O_DIRECTORY))
        return Named(step.fd, tail, step)

    @property
    def asks_noatime(self) -> bool:
        """Whether files of a tree that is only read are to be opened with O_NOATIME."""
        return self._noatime and self._read_only

    def forget_steps(self) -> None:
        """A directory was renamed or removed: what was known of the way to deep paths no longer holds."""
        self._steps.clear()

    def stat(self, path: bytes) -> os.stat_result:
        if len(path) <= _STEP_MAX:
            return os.stat(path or b".", dir_fd=self.fd, follow_symlinks=False)
        return self.at(path).stat()

    def open(self, path: bytes, flags: int, *, quiet: bool = False) -> int:
        """open(2) of what is at `path`; without updating its access time if that is asked for or the tree is only
        read."""
        place = self.at(path)
        if self._noatime and (quiet or self._read_only):
            with contextlib.suppress(PermissionError):
                return place.open(flags | os.O_NOATIME)
            # Not ours, and no capability: O_NOATIME is refused from the first object on.
            self._noatime = False
            log.info("%r: access times may change (no right to O_NOATIME)", self.path)
        return place.open(flags)

    def scan(self, path: bytes, *, quiet: bool = True) -> Iterator[Row]:
        """The names in the directory `path`, in the filesystem's order, without . and .. ; whiteouts that are
        0/0 character devices come as DT_WHT, which costs a stat only for special files. Not `quiet`: the directory's
        access time is updated by the filesystem's own rules."""
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY, quiet=quiet)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    yield Row(os.fsencode(entry.name), _type(entry), entry.inode())
        finally:
            os.close(fd)


def _split(path: bytes) -> tuple[bytes, bytes]:
    # Always near a multiple of the same length, so that neighbours share their head; a component has at most 255 bytes.
    step = _STEP_MAX - 256
    cut = path.rindex(b"/", 0, (len(path) - 1) // step * step)
    return path[:cut], path[cut + 1 :]


def _type(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return DT_LNK
    if entry.is_dir(follow_symlinks=False):
        return DT_DIR
    if entry.is_file(follow_symlinks=False):
        return DT_REG
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return DT_UNKNOWN
    if stat_module.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        return DT_WHT
    return stat_module.S_IFMT(status.st_mode) >> 12
