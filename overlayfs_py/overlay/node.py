"""`Node`: one inode of the union, and the table that makes sure there is only one for each.

A node knows its names, whether the upper has it, and which objects of the lower layers stand behind it. It holds no
open file; what cannot be found again by name any more (unlinked while in use) is held by a pin.

Thread: the one that runs the verbs.
"""

from __future__ import annotations

import os
import stat
import weakref
from typing import NamedTuple

from overlayfs_py.layers.layer import Layer, Ref
from overlayfs_py.overlay.staged import InPlaceData, StagedData


class Lower(NamedTuple):
    """An object of a lower layer."""

    layer: Layer
    ref: Ref


class Node:
    """One inode.

    Attributes:
        ino: st_ino, the same as long as the union has the object, copied up or not.
        kind: S_IFMT of its mode, as callers see it.
        parent, name: one of its names; `aliases` has the others that are known. A node without a name has `parent`
            None, but for the root.
        upper: whether the upper has the object (its data as well, unless `metacopy`).
        upper_ino: the inode number of the upper's object, to recognise it.
        lowers: for a directory the lower directories merged in it, top first; for another object the lower one it
            comes from (and, where that is a metacopy, the one with the data last).
        index: name in work/index of a hard link that was copied up; its place is there, whatever names it has.
        lower_names: names of an indexed hard link that only lower layers have so far.
        link_offset: what to add to the upper's st_nlink where the index counts lower names too.
        pin: descriptor of an upper object without a name, else -1.
        opaque: an upper directory that hides what is below.
        redirect: the redirect mark of an upper directory, if it has one.
        swept: names of the lower directories, once they were read in one go (merge_dir).
        subdirectories: how many a directory has, None if not counted.
        default_acl: the default ACL of a directory, None if it has none, False if unknown.
    """

    __slots__ = (
        "__weakref__",
        "_path",
        "_path_epoch",
        "aliases",
        "default_acl",
        "device",
        "impure",
        "index",
        "ino",
        "kind",
        "link_offset",
        "lookups",
        "lower_names",
        "lowers",
        "metacopy",
        "name",
        "opaque",
        "parent",
        "pin",
        "redirect",
        "staged",
        "subdirectories",
        "swept",
        "upper",
        "upper_ino",
    )

    def __init__(self, ino: int, kind: int, parent: Node | None, name: bytes) -> None:
        self.ino = ino
        self.kind = kind
        self.parent = parent
        self.name = name
        self.aliases: set[tuple[Node, bytes]] | None = None
        self.upper = False
        self.upper_ino = 0
        self.lowers: tuple[Lower, ...] = ()
        self.index: bytes | None = None
        self.lower_names: set[tuple[Node, bytes]] | None = None
        self.link_offset = 0
        self.pin = -1
        self.opaque = False
        self.redirect: bytes | None = None
        self.metacopy = False
        self.impure = False
        self.device = False
        self.swept: dict[bytes, int] | None = None
        self.lookups = 0
        self.subdirectories: int | None = None
        self.default_acl: bytes | bool | None = False
        self.staged: StagedData | InPlaceData | None = None
        self._path = b""
        self._path_epoch = -1

    @property
    def is_dir(self) -> bool:
        return self.kind == stat.S_IFDIR

    @property
    def is_root(self) -> bool:
        return self.parent is None and self.name == b"/"

    @property
    def linked(self) -> bool:
        """Whether some name leads to it."""
        return self.parent is not None or self.name == b"/"

    @property
    def merged(self) -> bool:
        """A directory in which lower layers may show through."""
        return bool(self.lowers) and self.kind == stat.S_IFDIR

    def add_name(self, parent: Node, name: bytes) -> None:
        if self.parent is None:
            self.parent, self.name = parent, name
            self._path_epoch = -1
        elif (self.parent is not parent or self.name != name) and not self.is_dir:
            if self.aliases is None:
                self.aliases = set()
            self.aliases.add((parent, name))

    def names(self) -> list[tuple[Node, bytes]]:
        """All names that are known."""
        first = [] if self.parent is None else [(self.parent, self.name)]
        return first + list(self.aliases or ())

    def drop_name(self, parent: Node, name: bytes) -> None:
        if self.aliases is not None:
            self.aliases.discard((parent, name))
        if self.lower_names is not None:
            self.lower_names.discard((parent, name))
        if self.parent is parent and self.name == name:
            self._path_epoch = -1
            if self.aliases:
                self.parent, self.name = self.aliases.pop()
            else:
                self.parent, self.name = None, b""

    def move(self, parent: Node, name: bytes, new_parent: Node, new_name: bytes) -> None:
        self.drop_name(parent, name)
        self.add_name(new_parent, new_name)

    def path(self, epoch: int) -> bytes:
        """Path from the root of the union, b"" for the root itself; also its path in the upper.

        Args:
            epoch: counts the renames of directories; a path is remembered for one epoch.
        """
        if self._path_epoch == epoch:
            return self._path
        parts = []
        node: Node = self
        while node.parent is not None and node._path_epoch != epoch:
            parts.append(node.name)
            node = node.parent
        prefix = node._path if node._path_epoch == epoch else b""
        parts.reverse()
        joined = b"/".join(parts)
        self._path = prefix + b"/" + joined if prefix and joined else prefix or joined
        self._path_epoch = epoch
        return self._path

    def release_pin(self) -> None:
        if self.pin >= 0:
            os.close(self.pin)
            self.pin = -1

    def __del__(self) -> None:
        if self.pin >= 0:
            os.close(self.pin)
            self.pin = -1


class NodeTable:
    """The nodes that are in use, by inode number; a node lives as long as somebody refers to it."""

    def __init__(self) -> None:
        self._nodes: weakref.WeakValueDictionary[int, Node] = weakref.WeakValueDictionary()

    def get(self, ino: int) -> Node | None:
        return self._nodes.get(ino)

    def add(self, node: Node) -> None:
        self._nodes[node.ino] = node

    def drop(self, node: Node) -> None:
        if self._nodes.get(node.ino) is node:
            del self._nodes[node.ino]

    def __len__(self) -> int:
        return len(self._nodes)
