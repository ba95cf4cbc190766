"""What a client sees of a union through one line: a whole tree, read as the kernel asks for it."""

from __future__ import annotations

import errno
import stat
import struct
from collections import deque
from typing import Any, NamedTuple

from overlayfs_py.wire.device.protocol import (
    DIRENT,
    DIRENTPLUS,
    GETXATTR_IN,
    IN_HEADER,
    OPEN_IN,
    READ_IN,
    RELEASE_IN,
    Opcode,
)
from tests.wire.device.desk import Reply
from tests.wire.device.line import Line

ROOT = 1
_ATTRIBUTES = struct.Struct("<QQQqqqIIIIIIIIII")
_ENTRY = struct.Struct("<QQQQII")
_XATTRS = (b"user.a", b"security.capability", b"system.posix_acl_access")


def _attributes(packed: bytes, at: int) -> tuple[int, ...]:
    """Without the access time of a directory: looking at it changes that."""
    found = list(_ATTRIBUTES.unpack_from(packed, at))
    if stat.S_ISDIR(found[9]):
        found[3] = found[6] = 0
    return tuple(found)


class Row(NamedTuple):
    """One name of a listing."""

    name: bytes
    ino: int
    offset: int
    type: int


class Told(NamedTuple):
    """An entry as the client has it: the node's id, and struct fuse_attr."""

    id: int
    attributes: tuple[int, ...]

    @property
    def mode(self) -> int:
        return self.attributes[9]


Seen = dict[bytes, dict[str, Any]]


class Client:
    """Asks questions one after another, each of which must be answered.

    Args:
        plus: whether listings are asked for with entries, as the kernel does when it means to look at them.
        step: bytes that a listing or a read asks for.

    `uid`: who asks, and of which group.
    """

    def __init__(self, line: Line, *, plus: bool = True, step: int = 4096) -> None:
        self._line = line
        self._unique = 0
        self._plus = plus
        self._step = step
        self._opens_directories = True
        self.told: dict[int, int] = {}
        self.uid = 0

    def ask(self, opcode: int, node: int, body: bytes = b"") -> Reply:
        self._unique += 2
        size = IN_HEADER.size + len(body)
        header = (size, opcode, self._unique, node, self.uid, self.uid, 0, 0, 0)
        self._line.put(IN_HEADER.pack(*header) + body)
        while True:
            reply = self._line.reply(30)
            assert reply is not None, f"no answer to opcode {opcode}"
            if reply.unique:
                assert reply.unique == self._unique
                return reply

    def lookup(self, parent: int, name: bytes) -> Told | int:
        """The entry, or an errno (ENOENT for a node id of 0)."""
        reply = self.ask(Opcode.LOOKUP, parent, name + b"\0")
        if reply.error:
            return reply.error
        return self._entered(reply.body) or 2

    def _entered(self, entry: bytes) -> Told | None:
        id = _ENTRY.unpack_from(entry)[0]
        if not id:
            return None
        self.told[id] = self.told.get(id, 0) + 1
        return Told(id, _attributes(entry, _ENTRY.size))

    def getattr(self, node: int) -> tuple[int, ...] | int:
        reply = self.ask(Opcode.GETATTR, node, bytes(16))
        return reply.error or _attributes(reply.body, 16)

    def xattrs(self, node: int) -> dict[bytes, bytes | int] | int:
        listed = self.ask(Opcode.LISTXATTR, node, GETXATTR_IN.pack(1 << 16, 0))
        if listed.error:
            return listed.error
        names = {*listed.body.split(b"\0")[:-1], *_XATTRS}
        found: dict[bytes, bytes | int] = {}
        for name in sorted(names):
            size = self.ask(Opcode.GETXATTR, node, GETXATTR_IN.pack(0, 0) + name + b"\0")
            value = self.ask(Opcode.GETXATTR, node, GETXATTR_IN.pack(1 << 16, 0) + name + b"\0")
            assert value.error == size.error
            if not value.error:
                assert struct.unpack_from("<I", size.body)[0] == len(value.body)
            found[name] = value.error or value.body
        return found

    def content(self, node: int, size: int) -> bytes | int:
        """The first pieces, one in the middle and the end."""
        opened = self.ask(Opcode.OPEN, node, OPEN_IN.pack(0, 0))
        if opened.error:
            return opened.error
        file = struct.unpack_from("<Q", opened.body)[0]
        pieces = b""
        for offset in sorted({0, self._step, size // 2, max(0, size - 7), size, size + 1}):
            reply = self.ask(Opcode.READ, node, READ_IN.pack(file, offset, self._step, 0, 0, 0, 0))
            pieces += reply.body if not reply.error else b"error %d" % reply.error
        assert not self.ask(Opcode.RELEASE, node, RELEASE_IN.pack(file, 0, 0, 0)).error
        return pieces

    def opendir(self, node: int) -> int:
        """A handle; 0 once the kernel would know that there are none."""
        if not self._opens_directories:
            return 0
        opened = self.ask(Opcode.OPENDIR, node, OPEN_IN.pack(0, 0))
        if opened.error == errno.ENOSYS:
            self._opens_directories = False
            return 0
        assert not opened.error
        handle: int = struct.unpack_from("<Q", opened.body)[0]
        return handle

    def releasedir(self, node: int, handle: int) -> None:
        if self._opens_directories:
            assert not self.ask(Opcode.RELEASEDIR, node, RELEASE_IN.pack(handle, 0, 0, 0)).error

    def listing(self, node: int) -> tuple[list[Row], dict[bytes, Told]] | int:
        """Rows, and the entries that came with them."""
        file = self.opendir(node)
        rows: list[Row] = []
        told: dict[bytes, Told] = {}
        opcode = Opcode.READDIRPLUS if self._plus else Opcode.READDIR
        while True:
            offset = rows[-1].offset if rows else 0
            request = READ_IN.pack(file, offset, self._step, 0, 0, 0, 0)
            reply = self.ask(opcode, node, request)
            if reply.error:
                return reply.error
            if not reply.body:
                break
            self._unpack(reply.body, rows, told)
        if rows:
            self._check_seek(node, file, rows)
        self.releasedir(node, file)
        return rows, told

    def _unpack(self, packed: bytes, rows: list[Row], told: dict[bytes, Told]) -> None:
        fixed = DIRENTPLUS if self._plus else DIRENT
        while packed:
            *_, ino, offset, length, kind = fixed.unpack_from(packed)
            name = packed[fixed.size : fixed.size + length]
            rows.append(Row(name, ino, offset, kind))
            if self._plus and (entry := self._entered(packed)) is not None:
                told[name] = entry
            packed = packed[fixed.size + length + -(fixed.size + length) % 8 :]

    def _check_seek(self, node: int, file: int, rows: list[Row]) -> None:
        """From the middle on it goes on as it did."""
        middle = len(rows) // 2
        opcode = Opcode.READDIRPLUS if self._plus else Opcode.READDIR
        request = READ_IN.pack(file, rows[middle].offset, self._step, 0, 0, 0, 0)
        again: list[Row] = []
        self._unpack(self.ask(opcode, node, request).body, again, {})
        assert again == rows[middle + 1 : middle + 1 + len(again)]

    def describe(self, node: int, attributes: tuple[int, ...]) -> dict[str, Any]:
        """All that can be asked about one node but for its listing."""
        kind = stat.S_IFMT(attributes[9])
        seen: dict[str, Any] = {"attributes": attributes, "again": self.getattr(node)}
        seen["xattrs"] = self.xattrs(node)
        if kind == stat.S_IFLNK:
            link = self.ask(Opcode.READLINK, node)
            seen["target"] = link.error or link.body
        elif kind == stat.S_IFREG:
            seen["content"] = self.content(node, attributes[1])
        return seen

    def tree(self, nodes_max: int = 1000) -> Seen:
        """Everything below the root by path, an errno where there is nothing else; at most so many nodes."""
        root = self.getattr(ROOT)
        assert not isinstance(root, int)
        seen: Seen = {b"": self.describe(ROOT, root)}
        queue = deque([(b"", ROOT)])
        while queue and len(seen) < nodes_max:
            path, node = queue.popleft()
            listed = self.listing(node)
            if isinstance(listed, int):
                seen[path]["listing"] = listed
                continue
            rows, told = listed
            seen[path]["listing"] = rows
            for row in rows[2:]:
                below = path + b"/" + row.name
                found = told.get(row.name) or self.lookup(node, row.name)
                if isinstance(found, int):
                    seen[below] = {"error": found}
                    continue
                seen[below] = self.describe(found.id, found.attributes)
                if stat.S_ISDIR(found.mode):
                    queue.append((below, found.id))
        return seen

    def forget_all(self) -> None:
        """Give back all that was told; parents first, which the kernel may do too."""
        for id, count in self.told.items():
            self._line.put(
                IN_HEADER.pack(IN_HEADER.size + 8, Opcode.FORGET, 0, id, 0, 0, 0, 0, 0)
                + struct.pack("<Q", count)
            )
        self.told.clear()
        # Python settles what is left over with a request of its own.
        self.xattrs(ROOT)
