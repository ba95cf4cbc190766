"""Upper and work directories belong to one mount at a time.

A daemon holds a flock(2) on both for as long as it lives; the kernel drops it with the process, so
nothing is left behind by a crash. Mounts of the kernel's overlayfs do not lock, they are looked up
in the mount table. Blocks, at most `GRACE` seconds where a daemon is about to end.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time

from overlayfs_py import mountinfo, registry
from overlayfs_py.errors import UserError
from overlayfs_py.escaping import split_options, unescape
from overlayfs_py.registry import Record

log = logging.getLogger(__name__)

# Container runtimes detach a mount lazily and mount the same upper again at once.
GRACE = 10.0
# A daemon that starts or ends holds the locks for a moment without a record.
_UNKNOWN_GRACE = 1.0
_POLL = 0.02


class Hold:
    """The locks on one pair of directories."""

    def __init__(self) -> None:
        self._fds: list[int] = []

    def close(self) -> None:
        """Let go; so does the end of the process."""
        while self._fds:
            os.close(self._fds.pop())

    def take(self, kind: str, path: bytes) -> None:
        """Lock one directory.

        Args:
            kind: the option that names it, for the message.
            path: the directory; it must exist.

        Raises:
            UserError: a live mount holds it.
            OSError: it cannot be opened.
        """
        _refuse_kernel_mount(kind, path)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._fds.append(fd)
        began = time.monotonic()
        while not _lock(fd, path):
            holder = holder_of(registry.identity(fd))
            waited = time.monotonic() - began
            leaving = holder is not None and not still_mounted(holder)
            if waited >= (GRACE if leaving else 0 if holder else _UNKNOWN_GRACE):
                raise UserError(_held(kind, path, fd, holder))
            time.sleep(_POLL)


def _lock(fd: int, path: bytes) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            return False
        log.warning(
            "%s cannot be locked (%s): nothing keeps a second mount from using it",
            os.fsdecode(path),
            error.strerror,
        )
    return True


def holder_of(identity: str) -> Record | None:
    """The live mount that has the directory `identity` (st_dev:st_ino) as upper or work."""
    for record in registry.live():
        if identity in (record.upper_id, record.work_id):
            return record
    return None


def still_mounted(record: Record) -> bool:
    """Whether the mount is still attached where its daemon can see it; a starting one counts as
    attached.
    """
    if not record.device:
        return True
    with contextlib.suppress(OSError):
        device = record.device.encode()
        return any(entry.device == device for entry in mountinfo.entries(record.pid))
    # Another user's process or another pid namespace: nothing can be said, so it counts as mounted.
    return os.path.exists(f"/proc/{record.pid}") or _same_device(record)


def _same_device(record: Record) -> bool:
    with contextlib.suppress(OSError):
        status = os.stat(record.mountpoint)
        return f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}" == record.device
    return False


def _held(kind: str, path: bytes, fd: int, holder: Record | None) -> str:
    name = os.fsdecode(path)
    if holder is not None:
        return (
            f"{kind} {name} is held by the mount on {os.fsdecode(holder.mountpoint)} "
            f"({holder.holder}): unmount that first, or use another directory"
        )
    return f"{kind} {name} is locked by {_locker(fd)}: wait for its end, or use another directory"


def _locker(fd: int) -> str:
    """Who has the flock, as far as /proc/locks tells."""
    status = os.fstat(fd)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with contextlib.suppress(OSError), open("/proc/locks") as file:
        for line in file:
            fields = line.split()
            if "FLOCK" in fields and device in fields:
                pid = fields[fields.index(device) - 1]
                return f"process {pid}{_command(pid)}"
    return "another process"


def _command(pid: str) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as file:
        return f" ({file.read().strip()})"
    return ""


def _refuse_kernel_mount(kind: str, path: bytes) -> None:
    wanted = registry.identity(path)
    for mountpoint, held in kernel_overlays():
        if wanted == held:
            raise UserError(
                f"{kind} {os.fsdecode(path)} is held by the kernel's overlay mount on "
                f"{os.fsdecode(mountpoint)}: unmount that first, or use another directory"
            )


def kernel_overlays() -> list[tuple[bytes, str]]:
    """Mountpoint and identity of every upper and work directory of the kernel's overlay mounts."""
    found: list[tuple[bytes, str]] = []
    for entry in mountinfo.entries():
        if entry.fstype != b"overlay":
            continue
        for option in split_options(os.fsdecode(mountinfo.decode(entry.super_options))):
            name, _, value = option.partition("=")
            # A path that was given relative to somebody's directory cannot be resolved here.
            if name in ("upperdir", "workdir") and value.startswith("/"):
                with contextlib.suppress(OSError):
                    identity = registry.identity(os.fsencode(unescape(value)))
                    found.append((entry.mountpoint, identity))
    return found
