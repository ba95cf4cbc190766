"""The objects that tests work on: one directory with one of each kind, laid out before the mount.

Each test takes a slot of its own, in one of three places: `upper` (the upper directory alone has
it), `lower` (the lower alone: every change copies up) and `merged` (a directory of both, its
objects in the lower).
"""

from __future__ import annotations

import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

PLACES = ("upper", "lower", "merged")
CONTENT = b"0123456789abcdef" * 512
STAMP_NS = 1_000_000_000_123_456_789
"""Of every time in a slot: 2001-09-09, with nanoseconds."""


@dataclass
class Slot:
    """`dir` is the slot as seen through the mount."""

    place: str
    dir: Path

    def __truediv__(self, name: str) -> Path:
        return self.dir / name

    def at(self, name: bytes) -> bytes:
        return os.fsencode(self.dir) + b"/" + name


FILES = {"file": 0o644, "other": 0o600, "exe": 0o755}
SPECIALS = {
    "fifo": (stat.S_IFIFO | 0o644, 0),
    "null": (stat.S_IFCHR | 0o666, os.makedev(1, 3)),
    "block": (stat.S_IFBLK | 0o600, os.makedev(7, 200)),
}
KINDS = ("file", "full", "empty", "symlink", "fifo", "null", "block", "socket")
"""One of each kind in a slot; `full` is a directory with something in it, `empty` one without."""


def fill(directory: Path) -> None:
    """Make a slot's objects in `directory`, which exists."""
    for name, mode in FILES.items():
        path = directory / name
        path.write_bytes(b"#!/bin/sh\nexit 7\n" if name == "exe" else CONTENT)
        path.chmod(mode)
    for name, (mode, rdev) in SPECIALS.items():
        os.mknod(directory / name, mode, rdev)
        (directory / name).chmod(stat.S_IMODE(mode))
    _bind(directory / "socket")
    (directory / "symlink").symlink_to("file")
    for name in ("full", "empty"):
        (directory / name).mkdir()
        (directory / name).chmod(0o755)
    (directory / "full" / "inner").write_bytes(b"inner")
    (directory / "hard1").write_bytes(b"linked")
    os.link(directory / "hard1", directory / "hard2")
    for path in [*directory.rglob("*"), directory]:
        os.utime(path, ns=(STAMP_NS, STAMP_NS), follow_symlinks=False)


def _bind(path: Path) -> None:
    """Bound relative to its directory: a socket's address holds 108 bytes."""
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)
