"""Merges the indexes of layers into the tree of an image, as the kernel's overlayfs would show them
stacked: whiteouts and opaque marks are resolved, and none is left.

A directory that a layer only passed through (`marks.IMPLIED`) takes its attributes from the layer
below that names it. An opaque root hides the layers below it, as the OCI spec has it; the kernel,
which never looks for marks on a root, would not.

The tree goes from the mapped indexes straight into the new one, directory by directory; memory holds no
more of it than eight bytes for each directory, and something for each file with several names. Of many
layers some are merged at a time, into one that still has the marks that count for what is below it.
"""

from __future__ import annotations

import heapq
import itertools
import operator
import os
import stat
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import BinaryIO

from layerstore import marks
from layerstore.errors import IndexCorrupt
from layerstore.index.reader import Index, Stat
from layerstore.index.tree import Entry, Node, NodeTree, Tree, directory
from layerstore.index.writer import write_index

OPEN_MAX = 64
"""Indexes that are open at a time: each takes two descriptors, of which a process may have only 1,024."""

_DIRECTORY = 4
_OVERLAY_MARKS = (marks.TRUSTED.opaque, marks.IMPLIED)
_OBJECT_MARKS = (marks.TRUSTED.metacopy, marks.TRUSTED.redirect)
_NID_BITS = 44
_LAST = 1 << 63
_RELEASE_EVERY = 8192
"""Entries after which the pages of the indexes that were read are given back, some 2 MB."""

_Place = tuple[int, int]
"""Where a directory is: the position of its layer, the top one's is 0, and its nid there."""


def write_merged(
    paths: list[bytes], file: BinaryIO, scratch: bytes, open_max: int = OPEN_MAX
) -> None:
    """Write the index of an image.

    Args:
        paths: of its layers' indexes, bottom first.
        file: where it goes; seekable.
        scratch: an own directory for temporary files.
        open_max: how many indexes may be open at a time, at least 2.

    Raises:
        IndexCorrupt: one of them is damaged.
        OSError: from reading or writing.
    """
    made: list[bytes] = []
    try:
        while len(paths) > open_max:
            groups = [paths[at : at + open_max] for at in range(0, len(paths), open_max)]
            paths = []
            for group in groups:
                made.append(os.path.join(scratch, b"merging-%d" % len(made)))
                paths.append(made[-1])
                with ExitStack() as stack, open(made[-1], "xb") as partial:
                    layers = [stack.enter_context(Index(path)) for path in group]
                    write_index(MergedTree(layers, partial=True), partial, scratch)
        with ExitStack() as stack:
            layers = [stack.enter_context(Index(path)) for path in paths]
            write_index(merge(layers), file, scratch)
    finally:
        for path in made:
            os.unlink(path)


def merge(layers: list[Index]) -> Tree:
    """The tree of an image.

    Args:
        layers: their indexes, bottom first, to stay open; none give an empty directory.

    Raises:
        IndexCorrupt: one of them is damaged; also while the tree is read.
    """
    return MergedTree(layers) if layers else NodeTree(directory())


class MergedTree:
    """The tree of layers, at least one; a `Tree`.

    Args:
        layers: their indexes, bottom first.
        partial: there are layers below these: what hides something there stays.
    """

    def __init__(self, layers: list[Index], *, partial: bool = False) -> None:
        self._layers = layers[::-1]
        self._partial = partial
        self._seen = [bytearray((index.size >> 8) + 1) for index in self._layers]
        self._count = 0
        self._waiting = array("Q")  # places of directories; the last one of each has a mark
        roots = [(place, index.root_nid) for place, index in enumerate(self._layers)]
        self.root = self._open(roots, hides=False)

    def listings(self) -> Iterator[Iterable[Entry]]:
        """As `Tree` has it.

        Raises:
            IndexCorrupt: a layer is damaged.
        """
        at = 0
        while at < len(self._waiting):
            places = []
            last = 0
            while not last:
                value = self._waiting[at]
                last = value & _LAST
                value ^= last
                places.append((value >> _NID_BITS, value & (1 << _NID_BITS) - 1))
                at += 1
            yield self._listing(places)

    def _listing(self, contributors: list[_Place]) -> Iterator[Entry]:
        for name, found in self._names(contributors):
            places: list[_Place] = []
            hides = False
            for place, nid, kind in found:
                if kind == _DIRECTORY:
                    places.append((place, nid))
                    continue
                # Nothing below counts any more.
                hides = True
                if not places:
                    node, key = self._file(place, nid)
                    if self._partial or not _is_whiteout(node):
                        yield name, node, key
                break
            if places:
                yield name, self._open(places, hides=hides), None
            self._count += 1
            if self._count % _RELEASE_EVERY == 0:
                for index in self._layers:
                    index.release()

    def _names(
        self, contributors: list[_Place]
    ) -> Iterator[tuple[bytes, Iterable[tuple[int, int, int]]]]:
        """The names of a directory, and what each is in the layers that have it, the top one first."""
        if len(contributors) == 1:
            ((place, nid),) = contributors
            for name, child, kind in self._layers[place].entries(nid):
                yield name, ((place, child, kind),)
            return
        listings = [self._entries(place, nid) for place, nid in contributors]
        for name, group in itertools.groupby(heapq.merge(*listings), operator.itemgetter(0)):
            yield name, (entry[1:] for entry in group)

    def _entries(self, place: int, nid: int) -> Iterator[tuple[bytes, int, int, int]]:
        for name, child, kind in self._layers[place].entries(nid):
            yield name, place, child, kind

    def _open(self, places: list[_Place], *, hides: bool) -> Node:
        """The node of a directory, which is remembered for a listing.

        Args:
            places: where it is, the top one first.
            hides: no more of it is below the last one.
        """
        chosen: tuple[Stat, dict[bytes, bytes]] | None = None
        for place, nid in places:
            index = self._layers[place]
            xattrs = index.xattrs(nid)
            self._see(place, nid)
            if chosen is None or (marks.IMPLIED in chosen[1] and marks.IMPLIED not in xattrs):
                chosen = index.stat(nid), xattrs
            self._waiting.append(place << _NID_BITS | nid)
            if xattrs.get(marks.TRUSTED.opaque) == marks.OPAQUE_YES:
                hides = True
                break
        self._waiting[-1] |= _LAST
        assert chosen is not None
        node = _node(*chosen, _OVERLAY_MARKS)
        if self._partial:
            if hides:
                node.xattrs[marks.TRUSTED.opaque] = marks.OPAQUE_YES
            if marks.IMPLIED in chosen[1]:
                node.xattrs[marks.IMPLIED] = b""
        return node

    def _see(self, place: int, nid: int) -> None:
        seen, at, bit = self._seen[place], nid >> 3, 1 << (nid & 7)
        if seen[at] & bit:
            path = self._layers[place].path
            raise IndexCorrupt(path, 0, f"expected directory {nid} in one place only")
        seen[at] |= bit

    def _file(self, place: int, nid: int) -> tuple[Node, int | None]:
        index = self._layers[place]
        status = index.stat(nid)
        regular = stat.S_ISREG(status.mode)
        node = _node(status, index.xattrs(nid), _OBJECT_MARKS if regular else ())
        if regular:
            node.set_content(index.content(nid), status.size)
        elif stat.S_ISLNK(status.mode):
            node.target = index.readlink(nid)
        elif node.is_directory:
            raise IndexCorrupt(index.path, 0, f"expected inode {nid} to be of its entry's type")
        return node, place << _NID_BITS | nid if status.nlink > 1 else None


def _is_whiteout(node: Node) -> bool:
    return marks.is_device_whiteout(node.mode, node.rdev)


def _node(status: Stat, xattrs: dict[bytes, bytes], left_out: tuple[bytes, ...]) -> Node:
    node = Node(
        status.mode,
        uid=status.uid,
        gid=status.gid,
        mtime_ns=status.mtime_ns,
        rdev=status.rdev,
    )
    node.xattrs = {name: value for name, value in xattrs.items() if name not in left_out}
    return node
