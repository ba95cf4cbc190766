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
        inherited_gid: the group that new objects in a directory get, -1 if the caller's, None if unknown.
        oci_names: whether an upper directory has `.wh.` names in it, None if unknown.
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
        "inherited_gid",
        "ino",
        "kind",
        "link_offset",
        "lookups",
        "lower_names",
        "lowers",
        "metacopy",
        "name",
        "oci_names",
        "opaque",
        "parent",
        "pin",
        "redirect",
        "staged",
        "subdirectories",
        "swept",
        "table",
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
        self.inherited_gid: int | None = None
        self.oci_names: bool | None = None
        self.table: NodeTable | None = None
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
        self.release_pin()
        if self.table is not None:
            self.table.discard(self)


class NodeTable:
    """The nodes that are in use, by inode number; a node lives as long as somebody refers to it."""

    def __init__(self) -> None:
        # Not a WeakValueDictionary: entering a node there costs 5 us, a third of a lookup.
        self._nodes: dict[int, weakref.ref[Node]] = {}

    def get(self, ino: int) -> Node | None:
        reference = self._nodes.get(ino)
        return None if reference is None else reference()

    def add(self, node: Node) -> None:
        node.table = self
        self._nodes[node.ino] = weakref.ref(node)

    def discard(self, node: Node) -> None:
        """The node is about to go; another may have taken its number meanwhile."""
        reference = self._nodes.get(node.ino)
        if reference is not None and reference() in (None, node):
            del self._nodes[node.ino]

    def __len__(self) -> int:
        return len(self._nodes)
