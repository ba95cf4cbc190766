"""Takes mounts out of the tree, and waits for their daemons.

Used by the command and by the daemon's own shutdown. Blocks; any thread but one that serves the
mount.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import subprocess
import time

from overlayfs_py import mount_flags, mountinfo, registry
from overlayfs_py.errors import UserError
from overlayfs_py.registry import Record

log = logging.getLogger(__name__)

# What a daemon may take to make an upper durable on a slow disk.
_END_MAX = 120.0
_CLOSING_MAX = 1.0
_SHOWN_HOLDERS = 5


def unmount(path: bytes, *, lazy: bool = False) -> None:
    """Unmount one of our mounts; returns when its daemon has ended.

    Args:
        path: the mountpoint, relative to the working directory or absolute.
        lazy: detach now, and leave the end to the last user.

    Raises:
        UserError: not ours, busy, or not permitted.
    """
    mountpoint = mountinfo.real_path(path)
    name = os.fsdecode(path)
    entry = mountinfo.top(mountpoint)
    if entry is None:
        raise UserError(f"{name} is not a mountpoint: 'overlayfs-py ps' lists the mounts")
    record = registry.find(mountpoint, os.fsdecode(entry.device))
    if record is None and entry.fstype != b"fuse.overlayfs-py":
        fstype = os.fsdecode(entry.fstype)
        raise UserError(f"{name} is a mount of type {fstype}, not of overlayfs-py: use umount(8)")
    process = _process(record)
    try:
        _take_away(mountpoint, name, os.fsdecode(entry.device), lazy=lazy)
        if process >= 0 and record is not None and not lazy:
            _await_end(process, record)
    finally:
        if process >= 0:
            os.close(process)
    if record is not None and record.engine == "kernel":
        _release(record, lazy=lazy)


def _release(record: Record, *, lazy: bool) -> None:
    """Give up the lease of a mount of the kernel's. Where the mount may live on, detached or in
    another namespace, the lease ends with it by itself.
    """
    gone = not lazy and not mountinfo.is_anywhere(record.device.encode())
    from layerstore.errors import StoreError
    from layerstore.store import Store

    with contextlib.suppress(StoreError), Store.open(record.store_root, create=False) as store:
        if gone and any(lease.name == record.lease for lease in store.leases.all()):
            store.leases.remove(record.lease, force=True)
        store.leases.settle()
        # The kernel closes the index a moment after the mount is gone.
        end = time.monotonic() + (0 if lazy else _CLOSING_MAX)
        while time.monotonic() < end:
            if all(lease.name != record.lease for lease in store.leases.all()):
                break
            time.sleep(0.02)
            store.leases.settle()


def _process(record: Record | None) -> int:
    """A descriptor of the daemon that no other process can inherit by number; -1 where there is
    none.
    """
    if record is not None and record.pid:
        with contextlib.suppress(OSError):
            return os.pidfd_open(record.pid)
    return -1


def _await_end(process: int, record: Record) -> None:
    poller = select.poll()
    poller.register(process, select.POLLIN)
    if not poller.poll(_END_MAX * 1000):
        raise UserError(
            f"{os.fsdecode(record.mountpoint)} is unmounted, but process {record.pid} still "
            f"writes its upper "
            f"directory after {_END_MAX:.0f} s: wait for it before the directory is used"
        )


def _take_away(mountpoint: bytes, name: str, device: str, *, lazy: bool) -> None:
    flags = mount_flags.UMOUNT_NOFOLLOW | (mount_flags.MNT_DETACH if lazy else 0)
    try:
        mount_flags.umount(mountpoint, flags)
        return
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise UserError(f"{name} is busy: {_users(device)}") from None
        if error.errno != errno.EPERM:
            raise UserError(f"{name} cannot be unmounted: {error.strerror}") from None
    complaint = fusermount(mountpoint, lazy=lazy)
    if "busy" in complaint:
        raise UserError(f"{name} is busy: {_users(device)}")
    if complaint:
        raise UserError(f"{name} cannot be unmounted: {complaint}")


def _users(device: str) -> str:
    """Who has files of the filesystem `device` (major:minor) open, as far as this user may see."""
    found: list[str] = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if _uses(f"/proc/{pid}", device):
            found.append(f"{_command(pid)} ({pid})")
        if len(found) > _SHOWN_HOLDERS:
            break
    if not found:
        return "somebody uses it whom this user may not see; 'umount --lazy' detaches it now"
    shown = ", ".join(found[:_SHOWN_HOLDERS]) + (", ..." if len(found) > _SHOWN_HOLDERS else "")
    return f"in use by {shown}; end that first, or 'umount --lazy' detaches it now"


def _uses(process: str, device: str) -> bool:
    major, minor = (int(number) for number in device.split(":"))
    # /proc/PID/maps writes the numbers in hexadecimal.
    mapped = f" {major:02x}:{minor:02x} "
    number = os.makedev(major, minor)
    with contextlib.suppress(OSError):
        links = [f"{process}/cwd", f"{process}/root", f"{process}/exe"]
        links += [f"{process}/fd/{fd}" for fd in os.listdir(f"{process}/fd")]
        for link in links:
            with contextlib.suppress(OSError):
                if os.stat(link).st_dev == number:
                    return True
        with open(f"{process}/maps") as maps:
            return any(mapped in line for line in maps)
    return False


def _command(pid: str) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as file:
        return file.read().strip()
    return "process"


def is_dead(mountpoint: bytes) -> bool:
    """Whether the FUSE mount there has lost its daemon."""
    try:
        os.stat(mountpoint)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def detach(mountpoint: bytes) -> None:
    """Take the mount out of the tree, now if nobody uses it, else lazily; what fails goes to the
    log.
    """
    began = time.monotonic()
    for flags in (0, mount_flags.MNT_DETACH):
        try:
            mount_flags.umount(mountpoint, flags | mount_flags.UMOUNT_NOFOLLOW)
            log.debug("unmounted after %.3f s", time.monotonic() - began)
            return
        except OSError as error:
            log.debug("umount %s: %s", os.fsdecode(mountpoint), error.strerror)
            if error.errno == errno.EPERM:
                break
    complaint = fusermount(mountpoint, lazy=True)
    if complaint:
        log.error("%s cannot be unmounted: %s", os.fsdecode(mountpoint), complaint)


def fusermount(mountpoint: bytes, *, lazy: bool = False) -> str:
    """Unmount through the setuid helper.

    Returns:
        What it complained about; empty when the mount is gone.
    """
    command: list[str | bytes] = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mountpoint]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        return f"fusermount3: {error.strerror}"
    return "" if done.returncode == 0 else os.fsdecode(done.stderr).strip() or "fusermount3 failed"
