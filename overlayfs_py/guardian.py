"""auto_unmount: a process of its own that takes a dead daemon's mount away, however the daemon
died.
"""

from __future__ import annotations

import os
import signal

from overlayfs_py import mountinfo, protection
from overlayfs_py.unmount import detach, is_dead


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
        entry = mountinfo.top(mountpoint)
        # A clean end has left no mount, or somebody else's.
        if entry is not None and entry.fstype.startswith(b"fuse") and is_dead(mountpoint):
            detach(mountpoint)
    finally:
        os._exit(0)
