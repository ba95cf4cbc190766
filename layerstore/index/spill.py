"""`Spill`: the part of a growing tree that is not in memory.

Whoever builds a tree of `Node` whose size nobody knows hands it over from time to time: everything below
the root then goes into a temporary SQLite database and leaves memory. A directory that is stored there has
in `children` only what has been added or looked up since; the rest is asked for by name. What is in
memory counts, so a tree is changed as any other: by putting nodes into `children`.

One thread per object. The database is made when it is first needed and needs no crash safety: who dies
leaves it in a session's scratch, which goes with the session.
"""

from __future__ import annotations

import errno
import marshal
import os
import sqlite3
import stat
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from layerstore import marks
from layerstore.index.reader import Inline, Object, Sparse
from layerstore.index.tree import Entry, Node

_SETTINGS = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA cache_size = -8192;
CREATE TABLE nodes (id INTEGER PRIMARY KEY, node BLOB NOT NULL) STRICT;
CREATE TABLE entries (
    parent INTEGER NOT NULL, name BLOB NOT NULL, id INTEGER NOT NULL, PRIMARY KEY (parent, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE whiteouts (parent INTEGER NOT NULL, name BLOB NOT NULL) STRICT;
"""
_ROOT = 1
_ROWS_AT_ONCE = 4096
_CONTENTS = (Inline, Object, Sparse)


class Spill:
    """Nodes that were stored, and the names they have.

    `Node.stored` is 0 until a node has been here. `Node.linked` must be set before a node gets a second
    name; stored nodes without it are taken to have one.

    Args:
        directory: where the database is made.
    """

    def __init__(self, directory: bytes) -> None:
        self._directory = directory
        self._path = b""
        self._last = _ROOT
        with _full_disk():
            self._path = _unused(directory)
            self._db = sqlite3.connect(
                os.fsdecode(self._path), isolation_level=None, check_same_thread=False
            )
            self._db.executescript(_SETTINGS)

    def close(self) -> None:
        """Forget everything."""
        self._db.close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)

    def store(self, root: Node, whiteouts: list[tuple[Node, bytes]]) -> None:
        """Take all nodes below `root` out of memory, and the names that whiteouts are still to hide in
        directories below it; `root` itself stays.

        Args:
            root: always the same.
            whiteouts: is empty afterwards.
        """
        root.stored = _ROOT
        with _full_disk():
            self._db.execute("BEGIN")
            nodes: list[tuple[int, bytes]] = []
            entries: list[tuple[int, bytes, int]] = []
            waiting = [root]
            while waiting:
                parent = waiting.pop()
                assert parent.children is not None
                for name, node in parent.children.items():
                    # A file that was only looked up is as it was.
                    changed = not node.stored or node.linked or node.is_directory
                    if not node.stored:
                        self._last += 1
                        node.stored = self._last
                    if changed:
                        nodes.append((node.stored, _pack(node)))
                    entries.append((parent.stored, name, node.stored))
                    if node.is_directory:
                        waiting.append(node)
                if len(entries) >= _ROWS_AT_ONCE:
                    self._put(nodes, entries)
            self._put(nodes, entries)
            # A directory without a number has been replaced, with all that was in it.
            rows = ((node.stored, name) for node, name in whiteouts if node.stored)
            self._db.executemany("INSERT INTO whiteouts VALUES (?, ?)", rows)
            self._db.execute("COMMIT")
        whiteouts.clear()
        root.children = {}

    def _put(self, nodes: list[tuple[int, bytes]], entries: list[tuple[int, bytes, int]]) -> None:
        self._db.executemany("INSERT OR REPLACE INTO nodes VALUES (?, ?)", nodes)
        self._db.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", entries)
        nodes.clear()
        entries.clear()

    def child(self, parent: Node, name: bytes) -> Node | None:
        """The node that a stored directory had under a name; the caller puts it into `children`."""
        query = "SELECT id, node FROM entries JOIN nodes USING (id) WHERE parent = ? AND name = ?"
        row = self._db.execute(query, (parent.stored, name)).fetchone()
        return _unpack(*row) if row is not None else None

    def apply_whiteouts(self) -> None:
        """Have each stored whiteout hide what is below its layer: a name that is not here gets a 0/0
        device, a directory becomes opaque. Everything must have been stored."""
        db = self._db
        with _full_disk():
            db.execute("BEGIN")
            query = "SELECT DISTINCT id FROM whiteouts JOIN entries USING (parent, name)"
            for number in array("Q", (number for (number,) in db.execute(query))):
                query = "SELECT node FROM nodes WHERE id = ?"
                node = _unpack(number, *db.execute(query, (number,)).fetchone())
                if node.is_directory:
                    node.xattrs[marks.TRUSTED.opaque] = marks.OPAQUE_YES
                    query = "UPDATE nodes SET node = ? WHERE id = ?"
                    db.execute(query, (_pack(node), number))
            query = "INSERT OR IGNORE INTO entries SELECT parent, name, ? + rowid FROM whiteouts"
            db.execute(query, (self._last,))
            query = "INSERT INTO nodes SELECT ? + rowid, ? FROM whiteouts"
            db.execute(query, (self._last, _pack(Node(stat.S_IFCHR))))
            db.execute("COMMIT")


class SpilledTree:
    """A tree of which all but the root is stored; a `Tree`.

    Args:
        root: its root.
        spill: where the rest is.
    """

    def __init__(self, root: Node, spill: Spill) -> None:
        self.root = root
        self._db = spill._db

    def listings(self) -> Iterator[Iterable[Entry]]:
        """As `Tree` has it."""
        waiting = array("Q", [_ROOT])
        at = 0
        while at < len(waiting):
            yield self._listing(waiting[at], waiting)
            at += 1

    def _listing(self, parent: int, waiting: array[int]) -> Iterator[Entry]:
        query = "SELECT name, id, node FROM entries JOIN nodes USING (id) WHERE parent = ? ORDER BY name"
        for name, number, blob in self._db.execute(query, (parent,)):
            node = _unpack(number, blob)
            if node.is_directory:
                waiting.append(number)
            yield name, node, number if node.linked else None


def _pack(node: Node) -> bytes:
    content = node.content
    return marshal.dumps(
        (
            *(node.mode, node.uid, node.gid, node.mtime_ns, node.rdev, node.size, node.target),
            *(node.linked, node.xattrs or None, _CONTENTS.index(type(content)), content[0]),
        )
    )


def _unpack(number: int, blob: bytes) -> Node:
    mode, uid, gid, mtime_ns, rdev, size, target, linked, xattrs, kind, value = marshal.loads(blob)
    node = Node(mode, uid=uid, gid=gid, mtime_ns=mtime_ns, rdev=rdev)
    node.size, node.target, node.linked, node.stored = size, target, linked, number
    node.xattrs = xattrs or {}
    node.content = _CONTENTS[kind](value)
    return node


def _unused(directory: bytes) -> bytes:
    number = 0
    while True:
        path = os.path.join(directory, b"spill-%d" % number)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            return path
        number += 1


@contextmanager
def _full_disk() -> Iterator[None]:
    """What SQLite says of a full disk, in the words of the system."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        raise
