"""Plain values that the verbs of the union take and give. No behaviour beyond arithmetic; any thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from overlayfs_py.syscalls import NOW

if TYPE_CHECKING:
    from overlayfs_py.overlay.node import Node


class Attributes(NamedTuple):
    """What stat(2) shows; times in nanoseconds, `blocks` in units of 512 bytes."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    blksize: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


class Entry(NamedTuple):
    """A name that was found or made: its node, and the node's attributes at that moment."""

    node: Node
    attributes: Attributes


class DirectoryEntry(NamedTuple):
    """One row of a listing; `type` is a DT_* number, `offset` is where to go on after this row."""

    name: bytes
    ino: int
    type: int
    offset: int


@dataclass(slots=True, frozen=True)
class Caller:
    """Who asks. `umask` is 0 where the transport has applied it already; `pid` 0 where it cannot be known."""

    uid: int
    gid: int
    pid: int = 0
    umask: int = 0


@dataclass(slots=True, frozen=True)
class Changes:
    """What setattr is to change; None leaves a field alone. With every field None it is the order to clear
    setuid, setgid and security.capability, as chown(2) to the same owner does. A time may be NOW."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


__all__ = ["NOW", "Attributes", "Caller", "Changes", "DirectoryEntry", "Entry"]
