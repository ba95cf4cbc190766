"""Replies as they go to /dev/fuse, header included. No I/O; any thread."""

from __future__ import annotations

import errno
import os

from overlayfs_py.overlay.values import Attributes
from overlayfs_py.wire.device.protocol import (
    ATTR_OUT,
    CREATE_OUT,
    ENTRY_OUT,
    IOCTL_OUT,
    LONG_OUT,
    OPEN_OUT,
    OUT_HEADER,
    STATFS_OUT,
    STATX_OUT,
    WRITE_OUT,
)
from overlayfs_py.wire.dispatch import WireEntry

FOREVER_S = 10**9
"""A timeout of 31 years: the wire has no word for "until told otherwise"."""

_NS = 1_000_000_000

# <linux/stat.h>
_STATX_BASIC_STATS = 0x7FF
_STATX_BTIME = 0x800


class Timeout:
    """A time as the protocol splits it."""

    __slots__ = ("ns", "s")

    def __init__(self, seconds: float | None) -> None:
        self.s = FOREVER_S if seconds is None else int(min(seconds, FOREVER_S))
        self.ns = 0 if seconds is None else int((seconds - int(seconds)) * _NS)


def device_number(rdev: int) -> int:
    """st_rdev in the 32 bits of the wire (new_encode_dev in <linux/kdev_t.h>)."""
    major, minor = os.major(rdev), os.minor(rdev)
    return (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & 0xFFF00) << 12


def rdev_of(number: int) -> int:
    """The reverse: new_decode_dev."""
    return os.makedev(number >> 8 & 0xFFF, (number & 0xFF) | (number >> 12 & 0xFFF00))


def fields(a: Attributes) -> tuple[int, ...]:
    """struct fuse_attr."""
    atime_s, atime_ns = divmod(a.atime_ns, _NS)
    mtime_s, mtime_ns = divmod(a.mtime_ns, _NS)
    ctime_s, ctime_ns = divmod(a.ctime_ns, _NS)
    return (
        a.ino,
        a.size,
        a.blocks,
        atime_s,
        mtime_s,
        ctime_s,
        atime_ns,
        mtime_ns,
        ctime_ns,
        a.mode,
        a.nlink,
        a.uid,
        a.gid,
        device_number(a.rdev) if a.rdev else 0,
        a.blksize,
        0,
    )


_NOTHING = (0,) * 16


def entry_fields(entry: WireEntry, names: Timeout, attributes: Timeout) -> tuple[int, ...]:
    """struct fuse_entry_out."""
    known = _NOTHING if entry.attributes is None else fields(entry.attributes)
    return (
        entry.node_id,
        entry.generation,
        names.s,
        attributes.s,
        names.ns,
        attributes.ns,
        *known,
    )


def failed(unique: int, number: int) -> bytes:
    """Args: number: an errno, positive."""
    return OUT_HEADER.pack(OUT_HEADER.size, -number, unique)


def done(unique: int) -> bytes:
    return OUT_HEADER.pack(OUT_HEADER.size, 0, unique)


def entry(unique: int, told: WireEntry, names: Timeout, attributes: Timeout) -> bytes:
    return ENTRY_OUT.pack(ENTRY_OUT.size, 0, unique, *entry_fields(told, names, attributes))


def attributes(unique: int, found: Attributes, timeout: Timeout) -> bytes:
    return ATTR_OUT.pack(ATTR_OUT.size, 0, unique, timeout.s, timeout.ns, 0, *fields(found))


def extended(unique: int, found: Attributes, birth_ns: int | None, timeout: Timeout) -> bytes:
    """Of STATX; `birth_ns` None: it is not known."""
    return STATX_OUT.pack(
        STATX_OUT.size,
        0,
        unique,
        timeout.s,
        timeout.ns,
        0,
        _STATX_BASIC_STATS | (0 if birth_ns is None else _STATX_BTIME),
        found.blksize,
        0,
        found.nlink,
        found.uid,
        found.gid,
        found.mode,
        found.ino,
        found.size,
        found.blocks,
        0,
        *divmod(found.atime_ns, _NS),
        *divmod(birth_ns or 0, _NS),
        *divmod(found.ctime_ns, _NS),
        *divmod(found.mtime_ns, _NS),
        os.major(found.rdev),
        os.minor(found.rdev),
        0,
        0,
    )


def commanded(unique: int, value: bytes) -> bytes:
    """Of IOCTL."""
    size = IOCTL_OUT.size + len(value)
    return IOCTL_OUT.pack(size, 0, unique, 0, 0, 0, 0) + value


def opened(unique: int, file: int, flags: int, backing: int) -> bytes:
    return OPEN_OUT.pack(OPEN_OUT.size, 0, unique, file, flags, backing)


def created(unique: int, told: tuple[int, ...], file: int, flags: int, backing: int) -> bytes:
    return CREATE_OUT.pack(CREATE_OUT.size, 0, unique, *told, file, flags, backing)


def written(unique: int, count: int) -> bytes:
    return WRITE_OUT.pack(WRITE_OUT.size, 0, unique, count, 0)


def number(unique: int, value: int) -> bytes:
    return LONG_OUT.pack(LONG_OUT.size, 0, unique, value)


def data(unique: int, value: bytes) -> bytes | list[bytes]:
    """Large data is not copied: the reply is then two buffers for writev(2)."""
    header = OUT_HEADER.pack(OUT_HEADER.size + len(value), 0, unique)
    return header + value if len(value) < 1 << 12 else [header, value]


def sized(unique: int, value: bytes, size: int) -> bytes | list[bytes]:
    """Of GETXATTR and LISTXATTR: with `size` 0 the caller asks how much there is."""
    if size == 0:
        return written(unique, len(value))
    if len(value) > size:
        return failed(unique, errno.ERANGE)
    return data(unique, value)


def statfs(unique: int, found: os.statvfs_result) -> bytes:
    return STATFS_OUT.pack(
        STATFS_OUT.size,
        0,
        unique,
        found.f_blocks,
        found.f_bfree,
        found.f_bavail,
        found.f_files,
        found.f_ffree,
        found.f_bsize,
        found.f_namemax,
        found.f_frsize,
    )
