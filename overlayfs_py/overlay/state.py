"""What the verbs of one mount share: layers, nodes, numbers, options. No policy beyond where an object is.

Thread: the one that runs the verbs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Protocol

from layerstore.marks import TRUSTED, Handle, MarkInvalid, Marks, parse_handle
from overlayfs_py.layers.directory import DirectoryLayer
from overlayfs_py.layers.image import ImageLayer
from overlayfs_py.layers.layer import Layer
from overlayfs_py.layers.place import Pinned, Place
from overlayfs_py.layers.upper import Upper
from overlayfs_py.overlay.config import Config
from overlayfs_py.overlay.cookies import cookie
from overlayfs_py.overlay.identity import ROOT_INO, Ids, InodeNumbers
from overlayfs_py.overlay.node import Lower, Node, NodeTable, make_node

log = logging.getLogger(__name__)

S_IFDIR = 0o040000


class Handles(Protocol):
    """What can be told from a file handle of one filesystem."""

    def inode(self, handle: Handle) -> int | None: ...
    def links(self, handle: Handle) -> int: ...


def _nobody(node: Node) -> None:
    """Default of `State.attributes_changed`."""


def _marks_of(lowers: list[Layer]) -> Marks:
    for layer in lowers:
        if isinstance(layer, DirectoryLayer):
            return layer.names
    return TRUSTED


class State:
    """One union.

    Args:
        upper: the writable layer, None for a read-only union.
        lowers: the read-only layers, top first.
        data_lowers: layers that only metacopy redirects lead to (`::` in lowerdir).
        config: see Config.

    Attributes:
        epoch: counts renames of directories (see Node.path).
        syncs: whether data is made durable; nothing is on a filesystem that lives in memory.
        index_on: whether hard links of the lower layers are kept over copy-up.
        protected: letters of the mark `protattr`, by st_ino, of what is append-only or immutable; see protection.
        cookie: says where a name is in a listing, see merge_dir.Listing; the same for as long as the union lives.
        attributes_changed: called with a node whose attributes changed beside the reply of the running verb, so
            that the transport can tell the kernel.
    """

    def __init__(
        self, upper: Upper | None, lowers: list[Layer], data_lowers: list[Layer], config: Config
    ) -> None:
        self.upper = upper
        self.lowers = lowers
        self.data_lowers = data_lowers
        self.config = config
        self.marks = upper.names if upper is not None else _marks_of(lowers)
        self.nodes = NodeTable()
        self.numbers = InodeNumbers()
        self.ids = Ids(config)
        self.epoch = 0
        self.protected: dict[int, bytes] = {}
        self.cookie: Callable[[bytes], int] = cookie
        self.attributes_changed: Callable[[Node], None] = _nobody
        self._positions = {id(layer): number for number, layer in enumerate(lowers)}
        self._filesystems: dict[bytes, tuple[Handles, Hashable] | None] = {}
        if upper is not None:
            if config.xattr_permissions:
                upper.use_override(config.xattr_permissions)
            self._register(upper)
        for layer in lowers:
            self._register(layer)
        self.syncs = config.syncs and not (upper is not None and upper.filesystem.in_memory)
        self.index_on = self._open_index()
        self.root = self._make_root()

    def _register(self, layer: Layer) -> None:
        device = layer.device(layer.stat(layer.root()))
        self.numbers.register(device)
        if isinstance(layer, DirectoryLayer):
            layer.follows_metacopy = self.config.metacopy or bool(self.data_lowers)
            self._know(layer.filesystem.uuid, layer.filesystem, device)
        elif isinstance(layer, ImageLayer):
            self._know(layer.identity, layer, device)

    def _know(self, uuid: bytes, handles: Handles, device: Hashable) -> None:
        if uuid not in self._filesystems:
            self._filesystems[uuid] = (handles, device)
            return
        known = self._filesystems[uuid]
        if known is not None and known[1] != device:
            # Two filesystems that say the same of themselves: a handle cannot tell them apart.
            self._filesystems[uuid] = None

    def _open_index(self) -> bool:
        if self.upper is None or self.config.index is False or not self.lowers:
            return False
        opened = self.upper.open_index()
        if not opened:
            log.log(
                logging.WARNING if self.config.index else logging.INFO,
                "the upper's filesystem has no file handles: hard links of lower layers break at copy-up",
            )
        return opened

    def _make_root(self) -> Node:
        root = make_node(ROOT_INO, S_IFDIR, None, b"/")
        root.lowers = tuple(Lower(layer, layer.root()) for layer in self.lowers)
        if self.upper is not None:
            found = self.upper.find_root()
            root.upper = True
            root.upper_ino = found.stat.st_ino
            root.impure = "impure" in found.marks
            if found.opaque:
                root.lowers = ()
        self.nodes.add(root)
        return root

    def layers_below(self, layer: Layer) -> list[Layer]:
        return self.lowers[self._positions[id(layer)] + 1 :]

    def path(self, node: Node) -> bytes:
        return node.path(self.epoch)

    def directories_moved(self) -> None:
        self.epoch += 1

    def child_path(self, parent: Node, name: bytes) -> bytes:
        path = parent.path(self.epoch)
        return path + b"/" + name if path else name

    def place(self, node: Node) -> Place:
        """Where the upper's object of `node` is."""
        assert self.upper is not None
        assert node.upper
        if node.index is not None:
            return self.upper.index_place(node.index)
        if node.linked:
            return self.upper.tree.at(node.path(self.epoch))
        return Pinned(node.pin)

    def origin_ino(self, raw: bytes) -> int | None:
        """The st_ino that belongs to an origin mark; None where the origin cannot be told."""
        try:
            handle = parse_handle(raw)
        except MarkInvalid:
            return None
        if handle is None:
            return None
        known = self._filesystems.get(handle.uuid)
        if known is None:
            return None
        handles, device = known
        ino = handles.inode(handle)
        return None if ino is None else self.numbers.number(device, ino)

    def origin_links(self, raw: bytes) -> int:
        """st_nlink of the lower object that an origin mark names; 0 where it cannot be told."""
        try:
            handle = parse_handle(raw)
        except MarkInvalid:
            return 0
        known = None if handle is None else self._filesystems.get(handle.uuid)
        if handle is None or known is None:
            return 0
        return known[0].links(handle)

    def close(self) -> None:
        self.root.release_pin()
        for layer in [*self.lowers, *self.data_lowers]:
            layer.close()
        if self.upper is not None:
            self.upper.close()
