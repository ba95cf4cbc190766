"""Merges the indexes of layers into the tree of an image, as the kernel's overlayfs would show them
stacked: whiteouts and opaque marks are resolved, and none is left.

A directory that a layer only passed through (`marks.IMPLIED`) takes its attributes from the layer
below that names it. An opaque root hides the layers below it, as the OCI spec has it; the kernel,
which never looks for marks on a root, would not.
"""

from __future__ import annotations

import stat

from layerstore import marks
from layerstore.errors import IndexCorrupt
from layerstore.index.reader import Index, Stat
from layerstore.index.tree import Node, directory

_DIRECTORY = 4
_CHARACTER = 2
_OVERLAY_MARKS = (marks.TRUSTED.opaque, marks.IMPLIED)
_OBJECT_MARKS = (marks.TRUSTED.metacopy, marks.TRUSTED.redirect)

_Place = tuple[Index, int]


def merge(layers: list[Index]) -> Node:
    """The tree of an image.

    Args:
        layers: their indexes, bottom first; none give an empty directory.

    Raises:
        IndexCorrupt: one of them is damaged.
    """
    if not layers:
        return directory()
    return _Merge().directory([(index, index.root_nid) for index in reversed(layers)])


class _Merge:
    def __init__(self) -> None:
        self._linked: dict[_Place, Node] = {}
        self._directories: set[_Place] = set()

    def directory(self, places: list[_Place]) -> Node:
        """The tree of the directory that is at `places`, the top one first."""
        root, contributors = self._open(places)
        waiting = [(root, contributors)]
        while waiting:
            node, contributors = waiting.pop()
            assert node.children is not None
            for name, found in self._names(contributors).items():
                if len(found) > 1 or found[0][2] == _DIRECTORY:
                    child, below = self._open([(index, nid) for index, nid, _ in found])
                    waiting.append((child, below))
                else:
                    child = self._file(found[0][0], found[0][1])
                node.children[name] = child
        return root

    def _open(self, places: list[_Place]) -> tuple[Node, list[_Place]]:
        """The node of a directory, and the layers that its names come from."""
        contributors: list[_Place] = []
        chosen: tuple[Stat, dict[bytes, bytes]] | None = None
        for index, nid in places:
            if (index, nid) in self._directories:
                raise IndexCorrupt(index.path, 0, f"expected directory {nid} in one place only")
            self._directories.add((index, nid))
            xattrs = index.xattrs(nid)
            if chosen is None or (marks.IMPLIED in chosen[1] and marks.IMPLIED not in xattrs):
                chosen = index.stat(nid), xattrs
            contributors.append((index, nid))
            if xattrs.get(marks.TRUSTED.opaque) == marks.OPAQUE_YES:
                break
        assert chosen is not None
        return _node(*chosen, _OVERLAY_MARKS), contributors

    def _names(self, contributors: list[_Place]) -> dict[bytes, list[tuple[Index, int, int]]]:
        """What each name is: one file, or a directory in one layer or several."""
        found: dict[bytes, list[tuple[Index, int, int]]] = {}
        closed: set[bytes] = set()  # nothing below counts any more
        for index, nid in contributors:
            for name, child, kind in index.entries(nid):
                if name in closed:
                    continue
                if kind == _DIRECTORY:
                    found.setdefault(name, []).append((index, child, kind))
                    continue
                closed.add(name)
                if kind == _CHARACTER and index.stat(child).rdev == 0:
                    continue
                if name not in found:
                    found[name] = [(index, child, kind)]
        return found

    def _file(self, index: Index, nid: int) -> Node:
        status = index.stat(nid)
        if status.nlink > 1 and (index, nid) in self._linked:
            return self._linked[index, nid]
        node = _node(status, index.xattrs(nid), _OBJECT_MARKS if stat.S_ISREG(status.mode) else ())
        if stat.S_ISREG(status.mode):
            node.set_content(index.content(nid), status.size)
        elif stat.S_ISLNK(status.mode):
            node.target = index.readlink(nid)
        elif node.is_directory:
            raise IndexCorrupt(index.path, 0, f"expected inode {nid} to be of its entry's type")
        if status.nlink > 1:
            self._linked[index, nid] = node
        return node


def _node(status: Stat, xattrs: dict[bytes, bytes], left_out: tuple[bytes, ...]) -> Node:
    node = Node(
        status.mode,
        uid=status.uid,
        gid=status.gid,
        mtime_ns=status.mtime_ns,
        rdev=status.rdev,
    )
    # Not popped: a dict keeps the room that it had, 170 bytes of the 700 that a file took in memory.
    node.xattrs = {name: value for name, value in xattrs.items() if name not in left_out}
    return node
