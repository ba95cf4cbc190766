"""What the kernel remembers of a mount, and owes for it: a model that asks, and forgets by the rules.

It counts each reply that names a node, keeps every directory as long as it knows a name in it, and every node as long
as it is open, and gives all counts back with FORGET and BATCH_FORGET (fs/fuse/inode.c, dev.c).
"""

from __future__ import annotations

import errno
import os
import random
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from overlayfs_py.wire.device import protocol
from overlayfs_py.wire.device.protocol import DIRENTPLUS, IN_HEADER, Opcode
from tests.wire.device.desk import Reply
from tests.wire.device.line import Line

ROOT = 1
ANSWER_WITHIN_S = 60.0
_ENTRY_SIZE, _MODE_AT = 128, 100
_LISTED = 1 << 15
_BATCH = 40
"""Nodes in one BATCH_FORGET; the kernel puts some hundreds into a page."""

Request = tuple[int, int, bytes]
"""Opcode, node and body."""


@dataclass
class Known:
    """A node: `told` is what a FORGET has to give back, `names` where it is known to be, `held` open files of it."""

    id: int
    mode: int
    told: int = 0
    names: set[tuple[int, bytes]] = field(default_factory=set)
    children: int = 0
    held: int = 0


class Kernel:
    """Args: line: to the session. `lookups` counts the replies that named a node."""

    def __init__(self, line: Line, chance: random.Random) -> None:
        self.line = line
        self.chance = chance
        self.nodes: dict[int, Known] = {ROOT: Known(ROOT, stat.S_IFDIR | 0o755)}
        self.names: dict[tuple[int, bytes], int] = {}
        self.lookups = self.forgotten = 0
        self._unique = 0

    # Requests

    def ask_all(self, requests: Sequence[Request]) -> list[Reply]:
        """The replies to requests that are under way together, in the order of these."""
        due: dict[int, int] = {}
        replies: list[Reply | None] = [None] * len(requests)
        for number, (opcode, node, body) in enumerate(requests):
            due[self._put(opcode, node, body)] = number
        while due:
            reply = self.line.reply(ANSWER_WITHIN_S)
            assert reply is not None, "no answer"
            if reply.unique:
                replies[due.pop(reply.unique)] = reply
        return [reply for reply in replies if reply is not None]

    def ask(self, opcode: int, node: int, body: bytes = b"") -> Reply:
        return self.ask_all([(opcode, node, body)])[0]

    def _put(self, opcode: int, node: int, body: bytes) -> int:
        self._unique += 2
        header = (IN_HEADER.size + len(body), opcode, self._unique, node, 0, 0, os.getpid(), 0, 0)
        self.line.put(IN_HEADER.pack(*header) + body)
        return self._unique

    # Names

    def look_up(self, parent: int, names: Sequence[bytes]) -> None:
        replies = self.ask_all([(Opcode.LOOKUP, parent, name + b"\0") for name in names])
        for name, reply in zip(names, replies, strict=True):
            self._entry(parent, name, reply)

    def make(self, opcode: int, parent: int, name: bytes, fixed: bytes, rest: bytes = b"") -> None:
        """MKNOD, MKDIR, SYMLINK, LINK."""
        self._entry(parent, name, self.ask(opcode, parent, fixed + name + b"\0" + rest))

    def create(self, parent: int, name: bytes) -> None:
        """A new file, open for a moment."""
        fixed = protocol.CREATE_IN.pack(os.O_RDWR | os.O_CREAT, 0o644, 0, 0)
        reply = self.ask(Opcode.CREATE, parent, fixed + name + b"\0")
        if self._entry(parent, name, reply) is not None:
            (fh,) = struct.unpack_from("<Q", reply.body, _ENTRY_SIZE)
            self.write(self.names[parent, name], fh)
            self.release(Opcode.RELEASE, self.names[parent, name], fh)

    def remove(self, opcode: int, parent: int, name: bytes) -> None:
        if not self.ask(opcode, parent, name + b"\0").error:
            self._drop_name(parent, name)

    def rename(self, parent: int, name: bytes, target: int, new_name: bytes) -> None:
        body = protocol.RENAME2_IN.pack(target, 0, 0) + name + b"\0" + new_name + b"\0"
        if self.ask(Opcode.RENAME2, parent, body).error:
            return
        id = self.names.get((parent, name))
        if id == self.names.get((target, new_name), 0):
            return
        self._drop_name(target, new_name)
        self._drop_name(parent, name)
        if id is not None:
            self._add_name(target, new_name, self.nodes[id])

    def list_directory(self, directory: int) -> None:
        """A whole listing, as often with entries as the kernel asks for them."""
        opened = self.ask(Opcode.OPENDIR, directory, protocol.OPEN_IN.pack(os.O_DIRECTORY, 0))
        if opened.error and opened.error != errno.ENOSYS:
            return
        fh = 0 if opened.error else struct.unpack_from("<Q", opened.body)[0]
        plus = self.chance.random() < 0.7
        offset = 0
        while True:
            body = protocol.READ_IN.pack(fh, offset, _LISTED, 0, 0, 0, 0)
            reply = self.ask(Opcode.READDIRPLUS if plus else Opcode.READDIR, directory, body)
            if reply.error or not reply.body:
                break
            offset = self._rows(directory, reply.body, plus)
        if not opened.error:
            self.release(Opcode.RELEASEDIR, directory, fh)

    def _rows(self, directory: int, rows: bytes, plus: bool) -> int:
        """Take note of a listing; the offset of the next row."""
        at = offset = 0
        start = DIRENTPLUS.size if plus else protocol.DIRENT.size
        while at < len(rows):
            _, offset, length, _ = struct.unpack_from("<QQII", rows, at + start - 24)
            if plus and struct.unpack_from("<Q", rows, at)[0]:
                name = rows[at + start : at + start + length]
                self._told(directory, name, rows[at : at + _ENTRY_SIZE])
            at += start + length + -length % 8
        return offset

    # Open files

    def open(self, node: int, flags: int) -> int | None:
        """The handle; None where it is refused."""
        reply = self.ask(Opcode.OPEN, node, protocol.OPEN_IN.pack(flags, 0))
        if reply.error:
            return None
        self.nodes[node].held += 1
        return int(struct.unpack_from("<Q", reply.body)[0])

    def close(self, node: int, fh: int) -> None:
        """Undo `open`."""
        self.release(Opcode.RELEASE, node, fh)
        self.nodes[node].held -= 1

    def read(self, node: int, fh: int) -> None:
        self.ask(Opcode.READ, node, protocol.READ_IN.pack(fh, 0, 4096, 0, 0, 0, 0))

    def write(self, node: int, fh: int) -> None:
        data = b"written"
        fixed = protocol.WRITE_IN.pack(fh, 0, len(data), 0, 0, 0, 0)
        self.ask(Opcode.WRITE, node, fixed + data)

    def release(self, opcode: int, node: int, fh: int) -> None:
        reply = self.ask(opcode, node, protocol.RELEASE_IN.pack(fh, 0, 0, 0))
        assert not reply.error, f"release of {fh}: {os.strerror(reply.error)}"

    # What is known

    def _entry(self, parent: int, name: bytes, reply: Reply) -> Known | None:
        if reply.error == errno.ENOENT or (not reply.error and not any(reply.body[:8])):
            self._drop_name(parent, name)
        return None if reply.error else self._told(parent, name, reply.body)

    def _told(self, parent: int, name: bytes, entry: bytes) -> Known | None:
        (id,) = struct.unpack_from("<Q", entry)
        (mode,) = struct.unpack_from("<I", entry, _MODE_AT)
        if not id:
            return None
        known = self.nodes.setdefault(id, Known(id, mode))
        assert stat.S_IFMT(known.mode) == stat.S_IFMT(mode), f"node {id} changed its kind"
        known.told += 1
        self.lookups += 1
        if self.names.get((parent, name)) != id:
            self._drop_name(parent, name)
            self._add_name(parent, name, known)
        return known

    def _add_name(self, parent: int, name: bytes, known: Known) -> None:
        if stat.S_ISDIR(known.mode):
            # A directory has one name: d_splice_alias moves it.
            for other in list(known.names):
                self._drop_name(*other)
        self.names[parent, name] = known.id
        known.names.add((parent, name))
        self.nodes[parent].children += 1

    def _drop_name(self, parent: int, name: bytes) -> None:
        id = self.names.pop((parent, name), None)
        if id is not None:
            self.nodes[id].names.discard((parent, name))
            self.nodes[parent].children -= 1

    # Forgetting

    def evictable(self) -> list[int]:
        """The nodes that memory pressure could take now."""
        return [
            id
            for id, known in self.nodes.items()
            if id != ROOT and not known.held and not known.children
        ]

    def evict(self, ids: Sequence[int]) -> None:
        """Forget nodes whole, many in one request or each in its own."""
        rows = []
        for id in ids:
            known = self.nodes.pop(id)
            for name in list(known.names):
                self.names.pop(name)
                self.nodes[name[0]].children -= 1
            rows.append((id, known.told))
            self.forgotten += known.told
        if self.chance.random() < 0.3:
            for id, told in rows:
                self._put(Opcode.FORGET, id, protocol.FORGET_IN.pack(told))
            return
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            body = b"".join(protocol.FORGET_ONE.pack(*row) for row in batch)
            self._put(Opcode.BATCH_FORGET, 0, protocol.BATCH_FORGET_IN.pack(len(batch), 0) + body)

    def give_back_one(self, id: int) -> None:
        """Forget one reply of several, as when a name turns out to be known already."""
        known = self.nodes[id]
        if known.told > 1:
            known.told -= 1
            self.forgotten += 1
            self._put(Opcode.FORGET, id, protocol.FORGET_IN.pack(1))

    def evict_all(self) -> None:
        """Forget everything but the root, leaves first."""
        while ids := self.evictable():
            self.evict(ids)
        assert list(self.nodes) == [ROOT]
        assert self.lookups == self.forgotten
