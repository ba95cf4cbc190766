"""The ioctl(2) that has a mount of ours hold still: what a client asks for, and the wire answers.

Given on an open directory of the mount, by root or by whoever mounted it. When it returns nothing changes any more,
until that open directory is closed, by whatever end of its process. Not fsfreeze(8)'s: the kernel keeps that one for
filesystems that it can freeze itself.
"""

from __future__ import annotations

import fcntl

FREEZE = 0xE5F0
"""_IO(FUSE_DEV_IOC_MAGIC, 0xF0): on a file in a mount that letter means nothing to anybody else."""


def freeze(fd: int) -> None:
    """Have the mount of an open directory hold still until it is closed; waits for what has begun.

    Raises:
        OSError: EBUSY, somebody else has; EPERM; ENOTTY or ENOSYS, whoever serves the mount cannot.
    """
    fcntl.ioctl(fd, FREEZE)
