"""Backing files: reads, writes and mappings of an open file go to the real file, within the kernel.

The kernel's rule: all opens of an inode are in passthrough with one backing id, or none is. What an inode's first
open decides holds until its last open is released. The kernel drops its side of an open before it sends RELEASE,
so what is known here is never behind it.

Only files that cannot be replaced under an open descriptor qualify: those in the upper, and all of a mount without
an upper. A lower file of a writable mount may be copied up, and an open in passthrough stays on the old content: such
files take part only if the mount accepts that (`passthrough=lower`). The copy in the upper then gets a node id of its
own, since it cannot share an inode with opens of the old content: OPEN is answered with ESTALE, the VFS looks the name
up once more, and is told of the new id, with the same st_ino.

Rejected: programs and shared libraries of lower layers in passthrough without being asked. It would pay for big ones
(the first run of a 64 MiB program, its pages in the layer's cache: some 200 ms through the daemon, under 25 ms in
passthrough and with the kernel's overlayfs; `python -c pass`: no difference), but an open for a library cannot be told
from any other, and a running program could be written to, which is ETXTBSY otherwise.

Not thread safe: under the lock of the mount.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from overlayfs_py.wire.device.protocol import (
    BACKING_MAP,
    DEV_IOC_BACKING_CLOSE,
    DEV_IOC_BACKING_OPEN,
    Open,
)

if TYPE_CHECKING:
    from overlayfs_py.overlay.handles import FileHandle

log = logging.getLogger(__name__)


class _Inode:
    """The opens of one inode; `backing` 0: through the page cache of the mount. `upper`: of the upper's file."""

    __slots__ = ("backing", "opens", "upper", "writers")

    def __init__(self, backing: int, upper: bool) -> None:
        self.backing = backing
        self.upper = upper
        self.opens = 0
        self.writers = 0


class Backings:
    """Which open files of one mount are in passthrough.

    Args:
        fd: /dev/fuse.
        lowers: lower files take part, since none is ever replaced or that is accepted.
        changed: tells the kernel to ask again for a node's attributes.

    `moving` are the ids of nodes that may change without a request: a shared mapping writes to the
    backing file, and its size and times with it.
    """

    def __init__(self, fd: int, *, lowers: bool, changed: Callable[[int], None]) -> None:
        self._fd = fd
        self._lowers = lowers
        self._changed = changed
        self._inodes: dict[int, _Inode] = {}
        self._files: dict[int, tuple[int, bool]] = {}
        self._unfit: set[int] = set()
        self.moving: set[int] = set()
        # Inodes whose pages in the mount's own cache may be older than the file.
        self._bypassed: set[int] = set()

    def is_behind(self, node: int, handle: FileHandle) -> bool:
        """Whether opens of the inode are on a lower file that `handle`, a new open of it, has been copied up from."""
        inode = self._inodes.get(node)
        return inode is not None and inode.backing > 0 and handle.in_upper and not inode.upper

    def superseded(self, node: int) -> None:
        """A node's object is told under another id from now on: what changes through that one shows here, too."""
        self.moving.add(node)
        self._changed(node)

    def opened(self, file: int, node: int, handle: FileHandle, flags: int) -> tuple[int, int]:
        """Flags and backing id to reply to an open, `flags` being those without passthrough."""
        inode = self._inodes.get(node)
        if inode is None:
            inode = _Inode(self._register(handle), handle.in_upper)
            self._inodes[node] = inode
        inode.opens += 1
        writes = handle.writable
        self._files[file] = node, writes
        if not inode.backing:
            if node in self._bypassed:
                self._bypassed.discard(node)
                flags &= ~Open.KEEP_CACHE
            return flags, 0
        self._bypassed.add(node)
        if writes:
            inode.writers += 1
            if node not in self.moving:
                self.moving.add(node)
                self._changed(node)
        return Open.PASSTHROUGH, inode.backing

    def took(self, file: int, node: int, handle: FileHandle, backing: int, *, upper: bool) -> None:
        """Somebody else opened a file, with this backing id; 0: without one. While it was open for writing the kernel
        was told to keep no attributes."""
        inode = self._inodes.setdefault(node, _Inode(backing, upper))
        inode.opens += 1
        self._files[file] = node, handle.writable
        if backing:
            self._bypassed.add(node)
            if handle.writable:
                inode.writers += 1
                self.moving.add(node)

    def _register(self, handle: FileHandle) -> int:
        fd = handle.fd
        if fd is None or not (handle.in_upper or self._lowers):
            return 0
        device = os.fstat(fd).st_dev
        if device in self._unfit:
            return 0
        try:
            # Of a bytearray, fcntl.ioctl gives back what ioctl(2) returned: the id.
            map = bytearray(BACKING_MAP.pack(fd, 0, 0))
            return int(fcntl.ioctl(self._fd, DEV_IOC_BACKING_OPEN, map))
        except OSError as error:
            self._unfit.add(device)
            log.info(
                "files of device %d:%d are not handed to the kernel: %s",
                os.major(device),
                os.minor(device),
                os.strerror(error.errno or errno.EIO),
            )
            return 0

    def released(self, file: int) -> None:
        node, wrote = self._files.pop(file)
        inode = self._inodes[node]
        inode.opens -= 1
        if wrote and inode.backing:
            inode.writers -= 1
            if not inode.writers:
                self.moving.discard(node)
                self._changed(node)
        if not inode.opens:
            del self._inodes[node]
            if inode.backing:
                self._close(inode.backing)

    def _close(self, backing: int) -> None:
        try:
            fcntl.ioctl(self._fd, DEV_IOC_BACKING_CLOSE, backing.to_bytes(4, "little"))
        except OSError as error:
            log.warning("backing id %d cannot be closed: %s", backing, error.strerror)

    def forget(self, node: int) -> None:
        self._bypassed.discard(node)
        self.moving.discard(node)

    def close(self) -> None:
        """Let go of every backing file, as at the end of the mount."""
        for inode in self._inodes.values():
            if inode.backing:
                self._close(inode.backing)
        self._inodes.clear()
        self._files.clear()
        self.moving.clear()
