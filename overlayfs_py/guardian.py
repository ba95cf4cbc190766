"""auto_unmount: a process of its own that takes a dead daemon's mount away, however the daemon
died.
"""

from __future__ import annotations

import errno
import os
import signal

from overlayfs_py import mountinfo, protection
from overlayfs_py.unmount import detach


def start(mountpoint: bytes) -> None:
    """Watch over the calling process from now on. Call before threads and locks exist.

    Args:
        mountpoint: absolute, without symlinks.
    """
    watched, held = os.pipe()
    if os.fork() > 0:
        # `held` stays open for as long as this process lives; that is the whole message.
        os.close(watched)
        return
    try:
        os.close(held)
        protection.leave_session({watched})
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        os.read(watched, 1)
        if _is_dead(mountpoint):
            detach(mountpoint)
    finally:
        os._exit(0)


def _is_dead(mountpoint: bytes) -> bool:
    """Whether a mount is there whose daemon is gone; a clean end has left none, or another one's."""
    entry = mountinfo.top(mountpoint)
    if entry is None or not entry.fstype.startswith(b"fuse"):
        return False
    try:
        os.stat(mountpoint)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False
