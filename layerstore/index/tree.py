"""`Node`: a tree in memory on its way into an index. Plain data; one thread at a time."""

from __future__ import annotations

import stat

from layerstore.index.reader import Content, Inline


class Node:
    """One inode. Two names of one inode are two entries with the same `Node`.

    `mtime_ns` in nanoseconds since 1970, may be negative. `children`: only of a directory.
    `content`: only of a regular file; its length is `size`. `target`: only of a symlink.
    `xattrs`: in full names, overlay marks included. `number`: the writer's own.
    """

    __slots__ = (
        "children",
        "content",
        "gid",
        "mode",
        "mtime_ns",
        "number",
        "rdev",
        "size",
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
        self.number = 0

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
