"""What the kernel is told without having asked. Any thread; nothing here waits for a request.

Source: fuse_notify() in fs/fuse/dev.c. An invalidation of attributes takes no lock that a caller may hold; one of a
name takes its directory's, so it must not be sent by the thread that would answer what holds it.
"""

from __future__ import annotations

import errno
import os

from overlayfs_py.wire.device.protocol import INVAL_ENTRY_OUT, INVAL_INODE_OUT, OUT_HEADER, Notify

_GONE = (errno.ENOENT, errno.ENODEV, errno.ENOTCONN, errno.EBADF, errno.ENOTDIR)
"""The kernel does not know the node or the name, so it has nothing wrong; or the mount is gone."""


class Notifier:
    """Args: fd: /dev/fuse."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def attributes(self, node: int) -> None:
        """The attributes of a node are to be asked for again, its pages are good."""
        self._send(INVAL_INODE_OUT.pack(INVAL_INODE_OUT.size, Notify.INVAL_INODE, 0, node, -1, 0))

    def contents(self, node: int) -> None:
        """So are its pages or its listing; waits for pages that are being read or written."""
        self._send(INVAL_INODE_OUT.pack(INVAL_INODE_OUT.size, Notify.INVAL_INODE, 0, node, 0, 0))

    def entry(self, parent: int, name: bytes) -> None:
        """A name, present or absent, is to be looked up again; waits for the directory's lock."""
        size = INVAL_ENTRY_OUT.size + len(name) + 1
        header = INVAL_ENTRY_OUT.pack(size, Notify.INVAL_ENTRY, 0, parent, len(name), 0)
        self._send(header + name + b"\0")

    def resend(self) -> None:
        """Every request that was read and not answered is to be queued again (from 7.40 on)."""
        self._send(OUT_HEADER.pack(OUT_HEADER.size, Notify.RESEND, 0))

    def _send(self, notification: bytes) -> None:
        try:
            os.write(self._fd, notification)
        except OSError as error:
            if error.errno not in _GONE:
                raise
