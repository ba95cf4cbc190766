"""Makes what was written through a mount durable: the command `sync`. Blocks until the disk has it; any thread.

syncfs(2) on a FUSE mount writes the kernel's own dirty pages to the daemon and asks nothing more of it, so the
filesystem that the upper is on is synced after it.
"""

from __future__ import annotations

import os

from overlayfs_py import mountinfo, registry, syscalls
from overlayfs_py.errors import UserError


def sync(path: bytes) -> None:
    """Sync one of our mounts; one without an upper has nothing to write.

    Args:
        path: the mountpoint, relative to the working directory or absolute.

    Raises:
        UserError: not ours, or its upper cannot be reached, or the disk fails.
    """
    mountpoint = mountinfo.real_path(path)
    name = os.fsdecode(path)
    entry = mountinfo.top(mountpoint)
    record = None if entry is None else registry.find(mountpoint, os.fsdecode(entry.device))
    if record is None:
        raise UserError(f"{name} is not a live mount: 'overlayfs-py ps' lists those that are")
    if record.upperdir is None:
        return
    _sync(mountpoint, name)
    upper = os.fsdecode(record.upperdir)
    try:
        reached = registry.identity(record.upperdir) == record.upper_id
    except OSError as error:
        raise UserError(f"{name}: its upper {upper} cannot be synced: {error.strerror}") from None
    if not reached:
        raise UserError(
            f"{name}: another directory is at {upper} here, where its upper was when it was mounted: sync the upper's "
            "filesystem with sync(1) -f"
        )
    _sync(record.upperdir, f"{name}: its upper {upper}")


def _sync(path: bytes, what: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.syncfs(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise UserError(f"{what} cannot be synced: {error.strerror}") from None
