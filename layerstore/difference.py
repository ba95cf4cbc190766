"""What one image has that another has not, from their indexes alone. Blocks; any thread.

Attributes and digests are compared, no content is read. Lines are those of `docker diff`: a directory
counts as changed where its owner, mode or xattrs did or something in it did, anything else where
whatever can be told of it did.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from layerstore import marks
from layerstore.index.reader import Index, Stat

_RELEASE_EVERY = 1 << 13
"""Entries after which the pages of both indexes are given back, some 4 MB."""

ADDED, CHANGED, DELETED = "A", "C", "D"

TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


class Change(NamedTuple):
    """`kind` is A, C or D; `path` is absolute in the tree; `type` is that of the object, or of what
    was deleted."""

    kind: str
    path: bytes
    type: str


def differences(old: Index, new: Index) -> list[Change]:
    """How the tree of one image differs from that of another, by path, a directory before what is
    in it. Of a deleted directory only itself is named.

    Raises:
        IndexCorrupt: one of them is damaged.
    """
    return _Comparison(old, new).run()


class _Comparison:
    def __init__(self, old: Index, new: Index) -> None:
        self._old = old
        self._new = new
        self._found: dict[bytes, Change] = {}
        self._count = 0

    def run(self) -> list[Change]:
        waiting: list[tuple[bytes, int | None, int]] = [
            (b"", self._old.root_nid, self._new.root_nid)
        ]
        if self._differ(self._old.root_nid, self._new.root_nid):
            self._note(CHANGED, b"", self._new.stat(self._new.root_nid))
        while waiting:
            path, before, now = waiting.pop()
            waiting += self._directory(path, before, now)
            if self._count >= _RELEASE_EVERY:
                self._count = 0
                self._old.release()
                self._new.release()
        self._spread()
        return sorted(self._found.values(), key=lambda change: change.path.split(b"/"))

    def _directory(
        self, path: bytes, before: int | None, now: int
    ) -> list[tuple[bytes, int | None, int]]:
        """Compare the names of two directories; returns where to go on."""
        left = _entries(self._old, before)
        below: list[tuple[bytes, int | None, int]] = []
        for name, nid, _ in self._new.entries(now):
            self._count += 1
            known = left.pop(name, None)
            child = path + b"/" + name
            status = self._new.stat(nid)
            if known is None:
                self._note(ADDED, child, status)
            elif self._differ(known, nid):
                self._note(CHANGED, child, status)
            if stat.S_ISDIR(status.mode):
                was = known is not None and stat.S_ISDIR(self._old.stat(known).mode)
                below.append((child, known if was else None, nid))
        for name, nid in left.items():
            self._note(DELETED, path + b"/" + name, self._old.stat(nid))
        return below

    def _note(self, kind: str, path: bytes, status: Stat) -> None:
        self._found[path] = Change(kind, path or b"/", TYPES[stat.S_IFMT(status.mode)])

    def _spread(self) -> None:
        """A directory in which something changed has changed."""
        for path in list(self._found):
            parent = os.path.dirname(path)
            while parent not in (b"", b"/") and parent not in self._found:
                self._found[parent] = Change(CHANGED, parent, TYPES[stat.S_IFDIR])
                parent = os.path.dirname(parent)

    def _differ(self, old: int, new: int) -> bool:
        before, now = self._old.stat(old), self._new.stat(new)
        if (before.mode, before.uid, before.gid, before.rdev) != (
            now.mode,
            now.uid,
            now.gid,
            now.rdev,
        ):
            return True
        if _xattrs(self._old, old) != _xattrs(self._new, new):
            return True
        if stat.S_ISDIR(now.mode):
            return False
        if (before.mtime_ns, before.size) != (now.mtime_ns, now.size):
            return True
        if stat.S_ISLNK(now.mode):
            return self._old.readlink(old) != self._new.readlink(new)
        return stat.S_ISREG(now.mode) and self._old.content(old) != self._new.content(new)


def _entries(index: Index, directory: int | None) -> dict[bytes, int]:
    if directory is None:
        return {}
    return {name: nid for name, nid, _ in index.entries(directory)}


def _xattrs(index: Index, nid: int) -> dict[bytes, bytes]:
    """Those of the content: how an index says where content is, is its own affair."""
    return {
        name: value
        for name, value in index.xattrs(nid).items()
        if not marks.TRUSTED.is_private(name)
    }
