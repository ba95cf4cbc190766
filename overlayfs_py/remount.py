"""`-o remount,ro|rw`: changes a live mount's flags through mount(2). Blocks; any thread."""

from __future__ import annotations

import errno
import os

from overlayfs_py import mount_flags, mountinfo, registry
from overlayfs_py.errors import UserError
from overlayfs_py.options import MountOptions


def remount(options: MountOptions, path: bytes) -> None:
    """Make a live mount read-only or writable and give it the flag words that were said; others
    stay.

    Everything else in `options` is ignored, as the kernel's overlayfs does at a remount.

    Args:
        path: the mountpoint.

    Raises:
        UserError: not ours, not permitted, or writable without an upper directory.
    """
    name = os.fsdecode(path)
    mountpoint = mountinfo.real_path(path)
    entry = mountinfo.top(mountpoint)
    record = registry.find(mountpoint, os.fsdecode(entry.device)) if entry else None
    if entry is None or (record is None and entry.fstype != b"fuse.overlayfs-py"):
        raise UserError(f"{name} is not a mount of overlayfs-py: 'overlayfs-py ps' lists them")
    if record is None:
        raise UserError(f"the daemon of {name} is dead: unmount it and mount it anew")
    if "rw" in options.kernel_flags and record.upperdir is None:
        raise UserError(
            f"{name} has no upper directory and stays read-only: mount it anew with upperdir= "
            f"and workdir="
        )
    words = _words(entry, options)
    try:
        mount_flags.mount(None, mountpoint, None, mount_flags.MS_REMOUNT | mount_flags.bits(words))
    except OSError as error:
        raise UserError(f"{name} cannot be remounted: {_reason(error)}") from None


def _words(entry: mountinfo.MountEntry, options: MountOptions) -> list[str]:
    """What the mount has now, with what was said put over it."""
    present = os.fsdecode(entry.options).split(",") + os.fsdecode(entry.super_options).split(",")
    changed = {mount_flags.GROUPS[word] for word in options.kernel_flags}
    kept = [
        word
        for word in present
        if word in mount_flags.FLAGS and mount_flags.GROUPS[word] not in changed
    ]
    return kept + options.kernel_flags


def _reason(error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return "files are open for writing; close them first"
    if error.errno == errno.EPERM:
        return "only root may change a mount's flags"
    return error.strerror or "mount(2) failed"
