"""A union of nothing: the verbs of `Overlay` over a tree in memory, to test the wire by itself."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from overlayfs_py.overlay.faults import Fault
from overlayfs_py.overlay.values import (
    NOW,
    Attributes,
    Caller,
    Changes,
    DirectoryEntry,
    Entry,
)


@dataclass(eq=False)
class MemoryNode:
    ino: int
    mode: int
    uid: int = 0
    gid: int = 0
    nlink: int = 1
    rdev: int = 0
    data: bytearray = field(default_factory=bytearray)
    target: bytes = b""
    names: dict[bytes, MemoryNode] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    atime_ns: int = 0
    mtime_ns: int = 0
    born_ns: int | None = None
    told: Any = None

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)


@dataclass(eq=False)
class MemoryHandle:
    node: MemoryNode


class MemoryOverlay:
    """`before` maps a verb's name to what is called before it runs; `calls` is its log."""

    def __init__(self) -> None:
        self.root = MemoryNode(77, stat.S_IFDIR | 0o755, nlink=2)
        self.inos = itertools.count(100)
        self.before: dict[str, Callable[[], None]] = {}
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.forgotten: list[MemoryNode] = []
        self.released: list[MemoryHandle] = []

    def _begin(self, verb: str, *arguments: Any) -> None:
        self.calls.append((verb, arguments))
        if verb in self.before:
            self.before[verb]()

    def _child(self, parent: MemoryNode, name: bytes) -> MemoryNode:
        if name not in parent.names:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return parent.names[name]

    def _entry(self, node: MemoryNode) -> Entry:
        return Entry(node, self.attributes(node))  # type: ignore[arg-type]

    def attributes(self, node: MemoryNode) -> Attributes:
        size = len(node.data)
        return Attributes(
            node.ino,
            node.mode,
            node.nlink,
            node.uid,
            node.gid,
            node.rdev,
            size,
            (size + 511) // 512,
            4096,
            node.atime_ns,
            node.mtime_ns,
            0,
        )

    def _add(self, parent: MemoryNode, name: bytes, mode: int, caller: Caller) -> MemoryNode:
        if name in parent.names:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        node = MemoryNode(next(self.inos), mode & ~caller.umask, caller.uid, caller.gid)
        parent.names[name] = node
        return node

    def lookup(self, parent: MemoryNode, name: bytes) -> Entry | None:
        self._begin("lookup", name)
        return self._entry(parent.names[name]) if name in parent.names else None

    def getattr(self, node: MemoryNode, handle: MemoryHandle | None = None) -> Attributes:
        self._begin("getattr", node)
        return self.attributes(node)

    def birth_ns(self, node: MemoryNode) -> int | None:
        return node.born_ns

    def ioctl(self, node: MemoryNode, command: int, data: bytes) -> bytes:
        self._begin("ioctl", node, command, data)
        if command != 0x80086601:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        return b"flag"

    def setattr(
        self,
        node: MemoryNode,
        changes: Changes,
        caller: Caller,
        handle: MemoryHandle | None = None,
    ) -> Attributes:
        self._begin("setattr", node, changes, caller, handle)
        if changes == Changes():
            node.mode &= ~(stat.S_ISUID | stat.S_ISGID)
        if changes.mode is not None:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(changes.mode)
        if changes.uid is not None:
            node.uid = changes.uid
        if changes.gid is not None:
            node.gid = changes.gid
        if changes.size is not None:
            del node.data[changes.size :]
            node.data.extend(bytes(changes.size - len(node.data)))
        if changes.atime_ns is not None:
            node.atime_ns = time.time_ns() if changes.atime_ns == NOW else changes.atime_ns
        if changes.mtime_ns is not None:
            node.mtime_ns = time.time_ns() if changes.mtime_ns == NOW else changes.mtime_ns
        return self.attributes(node)

    def readlink(self, node: MemoryNode) -> bytes:
        self._begin("readlink", node)
        return node.target

    def mknod(self, parent: MemoryNode, name: bytes, mode: int, rdev: int, caller: Caller) -> Entry:
        self._begin("mknod", name, mode, rdev, caller)
        node = self._add(parent, name, mode, caller)
        node.rdev = rdev
        return self._entry(node)

    def mkdir(self, parent: MemoryNode, name: bytes, mode: int, caller: Caller) -> Entry:
        self._begin("mkdir", name, mode, caller)
        return self._entry(self._add(parent, name, stat.S_IFDIR | mode, caller))

    def symlink(self, parent: MemoryNode, name: bytes, target: bytes, caller: Caller) -> Entry:
        self._begin("symlink", name, target, caller)
        node = self._add(parent, name, stat.S_IFLNK | 0o777, Caller(caller.uid, caller.gid))
        node.target = target
        return self._entry(node)

    def link(self, node: MemoryNode, parent: MemoryNode, name: bytes, caller: Caller) -> Entry:
        self._begin("link", node, name, caller)
        parent.names[name] = node
        node.nlink += 1
        return self._entry(node)

    def unlink(self, parent: MemoryNode, name: bytes, caller: Caller) -> None:
        self._begin("unlink", name, caller)
        self._child(parent, name).nlink -= 1
        del parent.names[name]

    def rmdir(self, parent: MemoryNode, name: bytes, caller: Caller) -> None:
        self._begin("rmdir", name, caller)
        if self._child(parent, name).names:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        del parent.names[name]

    def rename(
        self,
        parent: MemoryNode,
        name: bytes,
        new_parent: MemoryNode,
        new_name: bytes,
        flags: int,
        caller: Caller,
    ) -> None:
        self._begin("rename", name, new_name, flags, caller)
        new_parent.names[new_name] = parent.names.pop(name)

    def open(self, node: MemoryNode, flags: int, caller: Caller) -> MemoryHandle:
        self._begin("open", node, flags, caller)
        if flags & os.O_TRUNC:
            node.data.clear()
        return MemoryHandle(node)

    def create(
        self, parent: MemoryNode, name: bytes, flags: int, mode: int, caller: Caller
    ) -> tuple[Entry, MemoryHandle]:
        self._begin("create", name, flags, mode, caller)
        node = self._add(parent, name, stat.S_IFREG | mode, caller)
        return self._entry(node), MemoryHandle(node)

    def tmpfile(
        self, parent: MemoryNode, flags: int, mode: int, caller: Caller
    ) -> tuple[Entry, MemoryHandle]:
        self._begin("tmpfile", flags, mode, caller)
        node = MemoryNode(next(self.inos), stat.S_IFREG | mode, nlink=0)
        return self._entry(node), MemoryHandle(node)

    def read(self, handle: MemoryHandle, offset: int, size: int) -> bytes:
        self._begin("read", offset, size)
        return bytes(handle.node.data[offset : offset + size])

    def read_into(self, handle: MemoryHandle, offset: int, buffer: memoryview) -> int | None:
        return None

    def write(self, handle: MemoryHandle, offset: int, data: bytes, caller: Caller) -> int:
        self._begin("write", offset, data, caller)
        content = handle.node.data
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data
        return len(data)

    def flush(self, handle: MemoryHandle) -> None:
        self._begin("flush")

    def fsync(self, handle: MemoryHandle, datasync: bool) -> None:
        self._begin("fsync", datasync)

    def release(self, handle: MemoryHandle) -> None:
        self._begin("release")
        self.released.append(handle)

    def fallocate(
        self, handle: MemoryHandle, mode: int, offset: int, length: int, caller: Caller
    ) -> None:
        self._begin("fallocate", mode, offset, length, caller)

    def seek(self, handle: MemoryHandle, offset: int, whence: int) -> int:
        self._begin("seek", offset, whence)
        return offset

    def copy_file_range(
        self,
        src: MemoryHandle,
        src_offset: int,
        dst: MemoryHandle,
        dst_offset: int,
        length: int,
        caller: Caller,
    ) -> int:
        self._begin("copy_file_range", src_offset, dst_offset, length, caller)
        return length

    def opendir(self, node: MemoryNode) -> MemoryHandle:
        self._begin("opendir", node)
        return MemoryHandle(node)

    def readdir(self, handle: MemoryHandle, offset: int) -> Iterator[DirectoryEntry]:
        self._begin("readdir", offset)
        node = handle.node
        rows = [(b".", node), (b"..", node), *sorted(node.names.items())]
        for place, (name, child) in enumerate(rows[offset:], offset + 1):
            yield DirectoryEntry(name, child.ino, stat.S_IFMT(child.mode) >> 12, place)

    def readdirplus(
        self, handle: MemoryHandle, offset: int
    ) -> Iterator[tuple[DirectoryEntry, Entry | None]]:
        for row in self.readdir(handle, offset):
            if row.name in (b".", b".."):
                yield row, None
                continue
            entry = self.lookup(handle.node, row.name)
            if entry is not None:
                yield row, entry

    def releasedir(self, handle: MemoryHandle) -> None:
        self._begin("releasedir")
        self.released.append(handle)

    def fsyncdir(self, handle: MemoryHandle, datasync: bool) -> None:
        self._begin("fsyncdir", datasync)

    def statfs(self) -> os.statvfs_result:
        self._begin("statfs")
        return os.statvfs("/")

    def setxattr(
        self, node: MemoryNode, name: bytes, value: bytes, flags: int, caller: Caller
    ) -> None:
        self._begin("setxattr", name, value, flags, caller)
        node.xattrs[name] = value

    def getxattr(self, node: MemoryNode, name: bytes) -> bytes:
        self._begin("getxattr", name)
        if name not in node.xattrs:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return node.xattrs[name]

    def listxattr(self, node: MemoryNode, caller: Caller | None = None) -> list[bytes]:
        self._begin("listxattr")
        return list(node.xattrs)

    def removexattr(self, node: MemoryNode, name: bytes, caller: Caller) -> None:
        self._begin("removexattr", name, caller)
        del node.xattrs[name]

    def forget(self, node: MemoryNode) -> None:
        self.forgotten.append(node)

    def sync(self) -> None:
        self._begin("sync")

    def close(self) -> None:
        self._begin("close")


def faults(
    count: int, work: Callable[[], Any] = lambda: None, answer: bool = False
) -> Callable[[], None]:
    """Raises `Fault` the first `count` times it is called."""
    left = itertools.repeat(True, count)

    def before() -> None:
        if next(left, False):
            raise Fault(work, answer=answer)

    return before
