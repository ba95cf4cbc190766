"""The parts that requests are made of: header, names, times. Nothing that arrives is trusted. Any thread."""

from __future__ import annotations

import errno
import logging
from typing import NamedTuple

from overlayfs_py.errors import OverlayError
from overlayfs_py.overlay.values import NOW, Caller

_OFFSET_MAX = (1 << 63) - 1


class Header(NamedTuple):
    """struct fuse_in_header."""

    length: int
    opcode: int
    unique: int
    node: int
    uid: int
    gid: int
    pid: int
    extensions: int
    padding: int

    def caller(self, umask: int = 0) -> Caller:
        return Caller(self.uid, self.gid, self.pid, umask & 0o777)


def malformed(what: str) -> OverlayError:
    return OverlayError(errno.EINVAL, f"malformed request: {what}", logging.WARNING)


def name_of(body: memoryview, start: int = 0) -> bytes:
    """The name that ends a request.

    Raises:
        OverlayError: EINVAL if it is none.
    """
    name, end, rest = bytes(body[start:]).partition(b"\0")
    if not end or rest:
        raise malformed("a name without an end")
    return checked(name)


def checked(name: bytes) -> bytes:
    if not name or b"/" in name or name == b"." or name == b"..":
        raise malformed(f"no name: {name[:300]!r}")
    return name


def two_strings(body: memoryview, start: int) -> tuple[bytes, bytes]:
    """Two strings that end a request."""
    parts = bytes(body[start:]).split(b"\0")
    if len(parts) != 3 or parts[2]:
        raise malformed("not two strings")
    return parts[0], parts[1]


def check_range(offset: int, length: int) -> None:
    if offset + length > _OFFSET_MAX:
        raise malformed(f"{length} bytes at offset {offset}")


def time_of(valid: int, given: int, now: int, seconds: int, nanoseconds: int) -> int | None:
    if not valid & given:
        return None
    if valid & now:
        return NOW
    if nanoseconds >= 1_000_000_000:
        raise malformed(f"a time with {nanoseconds} nanoseconds")
    return seconds * 1_000_000_000 + nanoseconds
