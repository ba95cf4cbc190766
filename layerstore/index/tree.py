"""What goes into an index: inodes, and trees of them. Plain data; one thread at a time."""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

from layerstore.index.reader import Content, Inline


class Node:
    """One inode. Two names of one inode are two entries with the same `Node`.

    `mtime_ns` in nanoseconds since 1970, may be negative. `children`: only of a directory.
    `content`: only of a regular file; its length is `size`. `target`: only of a symlink.
    `xattrs`: in full names, overlay marks included. `stored`, `linked`: see `spill`.
    """

    __slots__ = (
        "children",
        "content",
        "gid",
        "linked",
        "mode",
        "mtime_ns",
        "rdev",
        "size",
        "stored",
        "target",
        "uid",
        "xattrs",
    )

    def __init__(
        self, mode: int, *, uid: int = 0, gid: int = 0, mtime_ns: int = 0, rdev: int = 0
    ) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.rdev = rdev
        self.size = 0
        self.xattrs: dict[bytes, bytes] = {}
        self.children: dict[bytes, Node] | None = {} if stat.S_ISDIR(mode) else None
        self.content: Content = _EMPTY
        self.target = b""
        self.stored = 0
        self.linked = False

    @property
    def is_directory(self) -> bool:
        """Whether the node is a directory."""
        return self.children is not None

    def set_content(self, content: Content, size: int) -> None:
        """Give a regular file its content of `size` bytes."""
        self.content = content
        self.size = size


_EMPTY = Inline(b"")


def directory(mode: int = 0o755, **attributes: int) -> Node:
    """A new directory; arguments as for `Node`."""
    return Node(stat.S_IFDIR | mode, **attributes)


Entry = tuple[bytes, Node, int | None]
"""A name, its inode, whose `children` mean nothing here, and a number that all names of this inode
have in common; None: it has no other name."""


class Tree(Protocol):
    """A tree that is read once from its root on, level by level, so that it need not be in memory."""

    @property
    def root(self) -> Node:
        """The directory at its root; its `children` mean nothing."""
        ...

    def listings(self) -> Iterator[Iterable[Entry]]:
        """The entries of each directory in the order of their bytes: those of the root, then those of
        each directory in the order in which the listings gave them. Each listing is read to its
        end before the next is asked for."""
        ...


class NodeTree:
    """The tree of nodes below a directory.

    Args:
        root: it.
    """

    def __init__(self, root: Node) -> None:
        self.root = root

    def listings(self) -> Iterator[Iterable[Entry]]:
        """As `Tree` has it."""
        waiting = deque([self.root])
        while waiting:
            yield _listing(waiting.popleft(), waiting)


def _listing(node: Node, waiting: deque[Node]) -> Iterator[Entry]:
    assert node.children is not None
    for name in sorted(node.children):
        child = node.children[name]
        yield name, child, id(child)
        if child.children is not None:
            waiting.append(child)
