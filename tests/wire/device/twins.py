"""Two unions that are alike, one behind the lane and one without it, of which the same is asked at the same time."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overlayfs_py.mount import build
from overlayfs_py.options import MountOptions
from overlayfs_py.overlay.overlay import Overlay
from overlayfs_py.wire.device import protocol
from overlayfs_py.wire.device.protocol import READ_IN, Opcode
from tests.wire.device.client import ROOT, Client, Row, Told
from tests.wire.device.desk import Reply
from tests.wire.device.line import Line

OPAQUE, REDIRECT = "trusted.overlay.opaque", "trusted.overlay.redirect"
_VALUES_COUNT = {OPAQUE, REDIRECT, "user.x", "trusted.overlay.impure"}
_NOW_NS = 1_200_000_000_000_000_000
"""Times before this were set by somebody."""
_UNKNOWN = 4000
"""An opcode that nobody knows."""


def lay(base: Path, *, lowers: bool) -> MountOptions:
    """Directories of every sort: merged, plain, opaque, with xattrs of their own, over a whiteout, with whiteouts."""
    options = MountOptions(fsync=False)
    for name in ("lower", "upper", "work"):
        (base / name).mkdir(parents=True)
    upper = base / "upper"
    for name in ("made", "made/deep", "made/deep/er", "own", "hides", "devices"):
        (upper / name).mkdir()
    (upper / "made/file").write_bytes(b"file")
    (upper / "made/deep/link").symlink_to("target")
    os.setxattr(upper / "own", "user.x", b"1")
    os.setxattr(upper / "hides", OPAQUE, b"y")
    os.mknod(upper / "devices/x", stat.S_IFCHR, os.makedev(0, 0))
    if lowers:
        for name in ("dir", "dir/below", "gone", "hides"):
            (base / "lower" / name).mkdir()
        (base / "lower/dir/a").write_bytes(b"a")
        (base / "lower/hides/hidden").write_bytes(b"hidden")
        (upper / "dir").mkdir()
        os.mknod(upper / "gone", stat.S_IFCHR, os.makedev(0, 0))
        options.lowerdirs = [os.fsencode(base / "lower")]
    options.upperdir, options.workdir = os.fsencode(upper), os.fsencode(base / "work")
    return options


@dataclass
class Listed:
    """A directory that is being listed."""

    node: int
    file: int
    rows: list[Row] = field(default_factory=list)


class Twin:
    """One of the two.

    Args:
        overlay: the union.
        upper: where its upper directory is.
        laned: whether the lane answers.
    """

    def __init__(self, overlay: Overlay, upper: Path, *, laned: bool) -> None:
        self.line = Line(overlay, laned=laned)
        self.client = Client(self.line, step=300)
        self.upper = upper
        self._counts = 0

    @property
    def asked(self) -> int:
        """How many requests were made, those to forget among them, but not those that count answers."""
        return self.client._unique // 2 - self._counts

    def answered(self) -> int:
        """How many requests the lane has answered."""
        assert self.line.laned is not None
        # The lane counts what it has answered; this is nothing that it knows.
        self._counts += 1
        assert self.ask(_UNKNOWN, ROOT).error == errno.ENOSYS
        return self.line.laned.lane.answered

    def node(self, path: bytes) -> int:
        """The node id of a directory, 0 if there is none; each step is looked up."""
        id = ROOT
        for name in path.split(b"/") if path else []:
            found = self.client.lookup(id, name)
            if not isinstance(found, Told) or not stat.S_ISDIR(found.mode):
                return 0
            id = found.id
        return id

    def ask(self, opcode: int, node: int, body: bytes = b"") -> Reply:
        return self.client.ask(opcode, node, body)

    def attributes(self, node: int) -> tuple[int, ...]:
        found = self.client.getattr(node)
        assert not isinstance(found, int)
        return found

    def xattrs(self, node: int) -> dict[bytes, bytes | int]:
        found = self.client.xattrs(node)
        assert not isinstance(found, int)
        return found

    def listing(self, node: int) -> tuple[list[Row], dict[bytes, Told]]:
        found = self.client.listing(node)
        assert not isinstance(found, int)
        return found

    def made(self, opcode: int, parent: int, body: bytes) -> Told | int:
        """What a request that makes something says of it, or an errno."""
        reply = self.ask(opcode, parent, body)
        if reply.error:
            return reply.error
        told = self.client._entered(reply.body)
        assert told is not None
        return told

    def mkdir(self, parent: int, name: bytes, mode: int = 0o755, umask: int = 0o022) -> Told | int:
        body = protocol.MKDIR_IN.pack(mode, umask) + name + b"\0"
        return self.made(Opcode.MKDIR, parent, body)

    def mknod(self, parent: int, name: bytes) -> Told | int:
        body = protocol.MKNOD_IN.pack(stat.S_IFIFO | 0o600, 0, 0, 0) + name + b"\0"
        return self.made(Opcode.MKNOD, parent, body)

    def symlink(self, parent: int, name: bytes, target: bytes = b"target") -> Told | int:
        return self.made(Opcode.SYMLINK, parent, name + b"\0" + target + b"\0")

    def rmdir(self, parent: int, name: bytes) -> int:
        return self.ask(Opcode.RMDIR, parent, name + b"\0").error

    def unlink(self, parent: int, name: bytes) -> int:
        return self.ask(Opcode.UNLINK, parent, name + b"\0").error

    def rename(self, parent: int, name: bytes, target: int, new: bytes, flags: int = 0) -> int:
        body = protocol.RENAME2_IN.pack(target, flags, 0) + name + b"\0" + new + b"\0"
        return self.ask(Opcode.RENAME2, parent, body).error

    def chmod(self, node: int, mode: int) -> int:
        body = protocol.SETATTR_IN.pack(1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, mode, 0, 0, 0, 0)
        return self.ask(Opcode.SETATTR, node, body).error

    def own(self, node: int, gid: int) -> int:
        """Give a node to another group, and set its times."""
        valid, times = 1 << 2 | 1 << 4 | 1 << 5, (1_000_000_000, 1_100_000_000, 0, 7, 9, 0)
        body = protocol.SETATTR_IN.pack(valid, 0, 0, 0, 0, *times, 0, 0, 0, gid, 0)
        return self.ask(Opcode.SETATTR, node, body).error

    def setxattr(self, node: int, name: bytes, value: bytes) -> int:
        body = protocol.SETXATTR_EXT_IN.pack(len(value), 0, 0, 0) + name + b"\0" + value
        return self.ask(Opcode.SETXATTR, node, body).error

    def opendir(self, node: int) -> Listed:
        return Listed(node, self.client.opendir(node))

    def read_on(self, listed: Listed, size: int = 300) -> bool:
        """The next rows; False at the end."""
        offset = listed.rows[-1].offset if listed.rows else 0
        request = READ_IN.pack(listed.file, offset, size, 0, 0, 0, 0)
        reply = self.ask(Opcode.READDIRPLUS, listed.node, request)
        assert not reply.error
        self.client._unpack(reply.body, listed.rows, {})
        return bool(reply.body)

    def fsyncdir(self, listed: Listed) -> int:
        body = protocol.FSYNC_IN.pack(listed.file, 0, 0)
        return self.ask(Opcode.FSYNCDIR, listed.node, body).error

    def releasedir(self, listed: Listed) -> None:
        self.client.releasedir(listed.node, listed.file)

    def forget(self, node: int) -> None:
        """Give back all lookups of one node."""
        count = self.client.told.pop(node, 0)
        if count:
            self._counts -= 1
            body = protocol.IN_HEADER.pack(48, Opcode.FORGET, 0, node, 0, 0, 0, 0, 0)
            self.line.put(body + struct.pack("<Q", count))

    def stored(self) -> dict[str, dict[str, Any]]:
        """What the upper directory has; of marks that name other objects only that they are there."""
        found = {}
        for directory, names, files in os.walk(self.upper):
            for name in [".", *names, *files]:
                path = os.path.normpath(os.path.join(directory, name))
                status = os.lstat(path)
                xattrs = {
                    xattr: os.getxattr(path, xattr, follow_symlinks=False)
                    if xattr in _VALUES_COUNT
                    else b""
                    for xattr in os.listxattr(path, follow_symlinks=False)
                }
                found[os.path.relpath(path, self.upper)] = {
                    "mode": status.st_mode,
                    "nlink": status.st_nlink,
                    "owner": (status.st_uid, status.st_gid),
                    "xattrs": xattrs,
                    "set": status.st_mtime_ns if status.st_mtime_ns < _NOW_NS else None,
                    "target": os.readlink(path) if stat.S_ISLNK(status.st_mode) else None,
                }
        return found

    def seen(self) -> dict[bytes, dict[str, Any]]:
        """What shows, without what differs between two directories that are alike: numbers and times."""
        seen = self.client.tree()
        for path, about in seen.items():
            for question in ("attributes", "again"):
                if question in about:
                    about[question] = comparable(about[question])
            if isinstance(listing := about.get("listing"), list):
                assert len({row.name for row in listing}) == len(listing), path
                about["listing"] = sorted((row.name, row.type) for row in listing)
        return seen

    def close(self) -> None:
        """Everything is forgotten; nothing may be left."""
        self.client.forget_all()
        laned, left = self.line.laned, self.line.dispatch.known
        counts = () if laned is None else laned.lane.counts()
        self.line.close()
        assert left == 1
        # Of the root Python keeps the number.
        assert counts[:1] + counts[2:3] in ((), (0, 0)), counts


def comparable(attributes: tuple[int, ...] | int) -> tuple[int, ...] | int:
    """Kind, mode, links and owner; and the size of what is no directory."""
    if isinstance(attributes, int):
        return attributes
    size = 0 if stat.S_ISDIR(attributes[9]) else attributes[1]
    return (size, *attributes[9:13])


@contextmanager
def twins(base: Path, *, lowers: bool = True) -> Iterator[tuple[Twin, Twin]]:
    """The one with the lane, and the other."""
    opened = []
    # An overlay takes the umask away.
    laid = {name: lay(base / name, lowers=lowers) for name in ("laned", "pure")}
    try:
        for name, options in laid.items():
            overlay = build(options)
            twin = Twin(overlay, base / name / "upper", laned=name == "laned")
            opened.append((twin, overlay))
        yield opened[0][0], opened[1][0]
        for twin, _ in opened:
            twin.close()
    finally:
        for twin, overlay in opened:
            if not twin.line.ended:
                twin.line.close()
            overlay.close()
