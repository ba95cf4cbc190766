"""Which node the kernel means by a node id, how often it was told of it, when it is forgotten.

The kernel counts every reply that carries an entry and gives the count back with FORGET
(fuse_forget_in.nlookup); only when both agree on zero is a node id free. Not thread safe: the
caller holds the lock of the mount.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from overlayfs_py.overlay.node import Node

ROOT_ID = 1
"""FUSE_ROOT_ID in <linux/fuse.h>; never looked up and never forgotten."""

_INSTEAD_OF_ROOT_ID = (1 << 64) - 1


class NodeIds(Protocol):
    """How a transport names nodes."""

    def id_of(self, node: Node) -> int:
        """The id for a node that has none yet; never 0 or 1."""

    def entered(self, record: Record) -> None:
        """A node is in the table now."""

    def kept(self, record: Record) -> bool:
        """Whether a node stays in the table although the kernel has forgotten it; until `reconsider`."""

    def left(self, record: Record) -> None:
        """It is not any more."""


class _Unheard:
    """Nobody else keeps nodes."""

    def entered(self, record: Record) -> None:
        pass

    def kept(self, record: Record) -> bool:
        return False

    def left(self, record: Record) -> None:
        pass


class InodeNumbers(_Unheard):
    """Node ids are st_ino, as pyfuse3 has it: its EntryAttributes hold one number for both."""

    def id_of(self, node: Node) -> int:
        # A layer may hold an inode 1 that is not the root.
        return node.ino if node.ino > ROOT_ID else _INSTEAD_OF_ROOT_ID


_FIRST_BITS = 60


class Counter(_Unheard):
    """Node ids that are never used again.

    Args:
        first: the first of them.
    """

    def __init__(self, first: int = ROOT_ID + 1) -> None:
        self._next = itertools.count(first)

    @classmethod
    def of_this_mount(cls) -> int:
        """A first id that makes those of one mount others than those of any other, so that a file handle from
        before a remount, which has a node id in it, leads nowhere."""
        return ROOT_ID + 1 + secrets.randbits(_FIRST_BITS)

    def id_of(self, node: Node) -> int:
        return next(self._next)


class Record:
    """One node that the kernel may name.

    `lookups` is what FORGET has still to give back, `generation` tells users of one number apart.
    """

    __slots__ = ("generation", "id", "lookups", "node")

    def __init__(self, id: int, node: Node, generation: int) -> None:
        self.id = id
        self.node = node
        self.generation = generation
        self.lookups = 0


class NodeTable:
    """All records of one mount.

    Args:
        root: has id 1 and stays.
        ids: names nodes that come in.
        drop: called with each node that left the table.

    `keeps`: a node that the kernel forgets stays for as long as it has a name, so that its id finds it again.
    """

    def __init__(self, root: Node, ids: NodeIds, drop: Callable[[Node], None]) -> None:
        self.ids = ids
        self.keeps = False
        self._drop = drop
        self._generations = itertools.count(1)
        self._root = Record(ROOT_ID, root, 0)
        self._by_id: dict[int, Record] = {ROOT_ID: self._root}
        root.told = self._root
        # How many requests under way need a node, whatever the kernel forgets.
        self._pins: dict[Record, int] = {}
        # How many superseded records of a node the kernel still holds.
        self._former: dict[Node, int] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, id: int) -> bool:
        return id in self._by_id

    def __iter__(self) -> Iterator[Record]:
        return iter(self._by_id.values())

    def __getitem__(self, id: int) -> Record:
        """Raises KeyError if the kernel was never told of `id`, or has forgotten it."""
        return self._by_id[id]

    def id_of(self, node: Node) -> int | None:
        """The id of a node that is known."""
        record: Record | None = node.told
        return None if record is None else record.id

    def enter(self, node: Node) -> Record:
        """Count one more reply that names `node`.

        A number whose last user is still known gets a new generation: the kernel then gives up
        the inode it has for that number (fuse_iget), and what it owes for both stays one count.
        """
        record: Record | None = node.told
        if record is None:
            record = self._add(node)
        record.lookups += 1
        return record

    def _add(self, node: Node) -> Record:
        id = self.ids.id_of(node)
        assert id > ROOT_ID, f"node id {id} is reserved"
        former = self._by_id.get(id)
        record = Record(id, node, 0 if former is None else next(self._generations))
        if former is not None:
            record.lookups, former.lookups = former.lookups, 0
            former.node.told = None
            if former not in self._pins:
                self._drop(former.node)
        self._by_id[id] = record
        node.told = record
        self.ids.entered(record)
        return record

    def supersede(self, record: Record) -> None:
        """Have a node told under another id from now on; the id it had stays good until it is forgotten."""
        record.node.told = None
        self._former[record.node] = self._former.get(record.node, 0) + 1

    def is_superseded(self, record: Record) -> bool:
        return record.node in self._former and record.node.told is not record

    def is_told_twice(self, id: int) -> bool:
        """Whether the kernel may have the node `id` as two inodes, each of which it changes by itself."""
        return bool(self._former) and id in self._by_id and self._by_id[id].node in self._former

    def forget(self, id: int, count: int) -> None:
        """Take back `count` replies.

        Raises:
            KeyError: of a node that is not known.
            ValueError: more than were counted; the node is dropped all the same.
        """
        record = self._by_id[id]
        if record is self._root:
            return
        excess = count > record.lookups
        record.lookups = 0 if excess else record.lookups - count
        self._release(record)
        if excess:
            raise ValueError(f"node {id} forgotten more often than it was looked up")

    def pin(self, record: Record) -> None:
        """Keep a node although the kernel may forget it; undone with `unpin`."""
        self._pins[record] = self._pins.get(record, 0) + 1

    def unpin(self, record: Record) -> None:
        left = self._pins.pop(record) - 1
        if left:
            self._pins[record] = left
        self._release(record)

    def reconsider(self, id: int) -> None:
        """A node may not be needed any more."""
        record = self._by_id.get(id)
        if record is not None:
            self._release(record)

    def _release(self, record: Record) -> None:
        if record.lookups or record is self._root or record in self._pins:
            return
        if self.keeps and record.node.linked and record.node.told is record:
            return
        if self._by_id.get(record.id) is record:
            if self.ids.kept(record):
                return
            del self._by_id[record.id]
            if self.is_superseded(record):
                self._former_left(record.node)
                return
            record.node.told = None
            self.ids.left(record)
            if record.node in self._former:
                return
        elif record.node.told is not None:
            # Its number was another's for a while, and is its own again.
            return
        self._drop(record.node)

    def _former_left(self, node: Node) -> None:
        left = self._former.pop(node) - 1
        if left:
            self._former[node] = left
        elif node.told is None:
            self._drop(node)

    def clear(self) -> None:
        """Forget all but the root, as at the end of a mount, when the kernel sends no FORGET."""
        self.keeps = False
        for record in list(self._by_id.values()):
            if record is not self._root:
                record.lookups = 0
                self._release(record)
