"""The ioctl(2)s that have a mount of ours hold still: what a client asks for, and the wire answers.

Given on an open directory of the mount, by root or by whoever mounted it. When FREEZE returns nothing changes any more,
until THAW or the end of the process that gave it. Not fsfreeze(8)'s: the kernel keeps that one for filesystems that it
can freeze itself.
"""

from __future__ import annotations

import fcntl

FREEZE = 0xE5F0
"""_IO(FUSE_DEV_IOC_MAGIC, 0xF0): on a file in a mount that letter means nothing to anybody else."""

THAW = 0xE5F1


def freeze(fd: int) -> None:
    """Have the mount of an open directory hold still; waits for what has begun.

    Raises:
        OSError: EBUSY, somebody else has; EPERM; ESRCH, whoever serves the mount sees no such process as this one;
            ENOTTY or ENOSYS, it cannot hold still.
    """
    fcntl.ioctl(fd, FREEZE)


def thaw(fd: int) -> None:
    """End what `freeze` began.

    Raises:
        OSError: EPERM, it was another process; and where the mount is gone.
    """
    fcntl.ioctl(fd, THAW)
