"""Whether anybody uses an index: a reader, a daemon, or a mount of the kernel's.

`Index` holds a shared flock, which tells of our own readers and daemons. A mount of the kernel's
(EROFS on the file itself) locks nothing, but holds the file open for as long as it lives, also in a
mount namespace that nobody can look into, one without a process, or detached and still used. The
mount tables below /proc show none of these. What proves that nobody has a file open is a write
lease (fcntl(2), F_SETLEASE), which the kernel grants only then. Where a filesystem has no leases, or
the file is somebody else's, the mount tables are what is left; mounts that overlayfs-py asked the
kernel for also have a lease in the store (`leases`), which goes only with that proof or at a reboot.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
from collections.abc import Iterator

_UNSUPPORTED = (errno.EINVAL, errno.ENOLCK, errno.EACCES, errno.EPERM, errno.EOPNOTSUPP)
_OCTAL = re.compile(rb"\\([0-7]{3})")
_COMMA = re.compile(rb"(?<!\\),")
_ESCAPE = re.compile(rb"\\(.)")


def claim(path: bytes, *, proven: bool = False) -> int | None:
    """Keep everybody from an index, if nobody uses it.

    Args:
        proven: nothing but the kernel's word counts; the mount tables do not.

    Returns:
        a descriptor; until it is closed others wait in open(2) or are refused. None: in use.

    Raises:
        OSError: it cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _lock(fd) and _is_closed_elsewhere(fd, path, proven):
            taken, fd = fd, -1
            return taken
        return None
    finally:
        if fd >= 0:
            os.close(fd)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_closed_elsewhere(fd: int, path: bytes, proven: bool) -> bool:
    """Whether this descriptor is the only one; it has a write lease afterwards, where it can."""
    try:
        # Who opens the file waits for the end of the lease, and its holder gets a signal: one that
        # is ignored unless somebody wants it, in place of SIGIO, which kills.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return False
        if error.errno not in _UNSUPPORTED:
            raise
        return not proven and next(mounts_of(path), None) is None
    return True


def mounts_of(path: bytes) -> Iterator[bytes]:
    """Where the kernel has the index mounted, as far as this process may look into mount tables."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/mountinfo", "rb") as file:
            for line in file:
                place, _, filesystem = line.partition(b" - ")
                kind, source = filesystem.split(b" ")[:2]
                if kind == b"erofs" and path in (_decode(source), _behind_loop(source)):
                    yield _decode(place.split(b" ")[4])


def overlay_on(upper: bytes) -> bytes | None:
    """Where the kernel's overlayfs has a directory as its upper, in this mount namespace; None: nowhere.

    Mounts by a path relative to somebody's working directory cannot be told.
    """
    wanted = os.stat(upper)
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            place, _, filesystem = line.partition(b" - ")
            kind, _, options = filesystem.rstrip(b"\n").split(b" ", 2)
            if kind != b"overlay":
                continue
            for option in _COMMA.split(_decode(options)):
                name, _, value = option.partition(b"=")
                path = _ESCAPE.sub(rb"\1", value)
                if name == b"upperdir" and path.startswith(b"/"):
                    with contextlib.suppress(OSError):
                        if os.path.samestat(os.stat(path), wanted):
                            return _decode(place.split(b" ")[4])
    return None


def _behind_loop(device: bytes) -> bytes:
    """The file behind a loop device, which mount(8) may have set up for it."""
    with contextlib.suppress(OSError):
        name = os.path.basename(device)
        with open(b"/sys/block/%s/loop/backing_file" % name, "rb") as file:
            return file.read().rstrip(b"\n")
    return b""


def _decode(field: bytes) -> bytes:
    """Without the octal escapes of proc(5)."""
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field)


def boot_id() -> str:
    """Which run of the kernel this is; empty where it does not say."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return ""
