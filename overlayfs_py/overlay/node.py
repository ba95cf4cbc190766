"""`Node`: one inode of the union, and the table that makes sure there is only one for each.

A node knows its names, whether the upper has it, and which objects of the lower layers stand behind it. It holds no
open file; what cannot be found again by name any more (unlinked while in use) is held by a pin.

The kernel keeps millions of inodes, so a node is small: what only directories have is in `Directory`, and values that
many nodes have are shared (tests/overlay/test_memory.py has the limits).

Thread: the one that runs the verbs.
"""

from __future__ import annotations

import os
import stat
import weakref
from typing import Any, NamedTuple

from overlayfs_py.layers.layer import Layer, Ref
from overlayfs_py.overlay.staged import InPlaceData, StagedData


class Lower(NamedTuple):
    """An object of a lower layer."""

    layer: Layer
    ref: Ref


_KINDS = {
    kind: kind
    for kind in (
        stat.S_IFREG,
        stat.S_IFDIR,
        stat.S_IFLNK,
        stat.S_IFIFO,
        stat.S_IFSOCK,
        stat.S_IFCHR,
        stat.S_IFBLK,
    )
}
"""The number of each kind, once: an int of its own for each node would take 32 bytes."""

_SLOTS = (
    "__weakref__",
    "aliases",
    "device",
    "index",
    "ino",
    "kind",
    "link_offset",
    "lower_names",
    "lowers",
    "metacopy",
    "name",
    "parent",
    "pin",
    "redirect",
    "staged",
    "table",
    "told",
    "upper",
    "upper_ino",
)
"""Of `Node`. By this name, since mypy does not know that a subclass may have more, and set them."""

_ALIASES_IN_A_TUPLE = 8

Alias = tuple["Node", bytes]


class Node:
    """One inode; `make_node` makes them.

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
        redirect: the redirect mark of an upper object, if it has one.
        told: what the transport keeps of the node, whatever that is.
        opaque: an upper directory that hides what is below.
        swept: names of the lower directories, once they were read in one go (merge_dir).
        subdirectories: how many a directory has, None if not counted.
        inherited_gid: the group that new objects in a directory get, -1 if the caller's, None if unknown.
        oci_names: whether an upper directory has `.wh.` names in it, None if unknown.
        default_acl: the default ACL of a directory, None if it has none, False if unknown.
    """

    __slots__ = _SLOTS

    # What a directory has in slots of its own.
    opaque: bool = False
    impure: bool = False
    swept: dict[bytes, int] | None = None
    lookups: int = 0
    subdirectories: int | None = None
    default_acl: bytes | bool | None = False
    inherited_gid: int | None = None
    oci_names: bool | None = None

    def __init__(self, ino: int, kind: int, parent: Node | None, name: bytes) -> None:
        self.ino = ino
        self.kind = _KINDS.get(kind, kind)
        self.parent = parent
        self.name = name
        self.aliases: tuple[Alias, ...] | set[Alias] = ()
        self.upper = False
        self.upper_ino = 0
        self.lowers: tuple[Lower, ...] = ()
        self.index: bytes | None = None
        self.lower_names: set[tuple[Node, bytes]] | None = None
        self.link_offset = 0
        self.pin = -1
        self.redirect: bytes | None = None
        self.metacopy = False
        self.device = False
        self.staged: StagedData | InPlaceData | None = None
        self.table: NodeTable | None = None
        self.told: Any = None

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
            self._moved()
        elif (self.parent is not parent or self.name != name) and not self.is_dir:
            self._add_alias((parent, name))

    def _add_alias(self, alias: Alias) -> None:
        # Most have one, and a set takes 216 bytes.
        if isinstance(self.aliases, set):
            self.aliases.add(alias)
        elif alias not in self.aliases:
            aliases = (*self.aliases, alias)
            self.aliases = aliases if len(aliases) <= _ALIASES_IN_A_TUPLE else set(aliases)

    def _drop_alias(self, alias: Alias) -> None:
        if isinstance(self.aliases, set):
            self.aliases.discard(alias)
        else:
            self.aliases = tuple(other for other in self.aliases if other != alias)

    def names(self) -> list[tuple[Node, bytes]]:
        """All names that are known."""
        first = [] if self.parent is None else [(self.parent, self.name)]
        return [*first, *self.aliases]

    def drop_name(self, parent: Node, name: bytes) -> None:
        if self.aliases:
            self._drop_alias((parent, name))
        if self.lower_names is not None:
            self.lower_names.discard((parent, name))
        if self.parent is parent and self.name == name:
            self._moved()
            if self.aliases:
                self.parent, self.name = alias = next(iter(self.aliases))
                self._drop_alias(alias)
            else:
                self.parent, self.name = None, b""

    def move(self, parent: Node, name: bytes, new_parent: Node, new_name: bytes) -> None:
        self.drop_name(parent, name)
        self.add_name(new_parent, new_name)

    def path(self, epoch: int) -> bytes:
        """Path from the root of the union, b"" for the root itself; also its path in the upper.

        Args:
            epoch: counts the renames of directories; the path of a directory is remembered for one epoch.
        """
        if self.parent is None:
            return b""
        prefix = self.parent.path(epoch)
        return prefix + b"/" + self.name if prefix else self.name

    def _moved(self) -> None:
        """The node has another name than before."""

    def release_pin(self) -> None:
        if self.pin >= 0:
            os.close(self.pin)
            self.pin = -1

    def __del__(self) -> None:
        self.release_pin()
        if self.table is not None:
            self.table.discard(self)


class Directory(Node):
    """A directory: what `Node` has the defaults of, and its path."""

    __slots__ = (
        "_path",
        "_path_epoch",
        "default_acl",
        "impure",
        "inherited_gid",
        "lookups",
        "oci_names",
        "opaque",
        "subdirectories",
        "swept",
    )

    def __init__(self, ino: int, kind: int, parent: Node | None, name: bytes) -> None:
        super().__init__(ino, kind, parent, name)
        self.opaque = False
        self.impure = False
        self.swept = None
        self.lookups = 0
        self.subdirectories = None
        self.default_acl = False
        self.inherited_gid = None
        self.oci_names = None
        self._path = b""
        self._path_epoch = -1

    def path(self, epoch: int) -> bytes:
        if self._path_epoch == epoch:
            return self._path
        parts = []
        node: Node | None = self
        while isinstance(node, Directory) and node.parent is not None:
            if node._path_epoch == epoch:
                break
            parts.append(node.name)
            node = node.parent
        assert isinstance(node, Directory)
        prefix = node._path if node._path_epoch == epoch else b""
        parts.reverse()
        joined = b"/".join(parts)
        self._path = prefix + b"/" + joined if prefix and joined else prefix or joined
        self._path_epoch = epoch
        return self._path

    def _moved(self) -> None:
        self._path_epoch = -1


def make_node(ino: int, kind: int, parent: Node | None, name: bytes) -> Node:
    """A node of the kind `kind` (S_IFMT)."""
    return (Directory if kind == stat.S_IFDIR else Node)(ino, kind, parent, name)


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
