"""Arbitrary, damaged and truncated requests, most of them about nodes and handles that were told in replies."""

from __future__ import annotations

import os
import random
import stat
import struct
from collections.abc import Callable
from struct import Struct

from overlayfs_py.wire.device import protocol
from overlayfs_py.wire.device.protocol import DIRENTPLUS, IN_HEADER, Opcode
from overlayfs_py.wire.lane import FIRST_ID

LAYOUTS: dict[int, tuple[Struct | None, int]] = {
    Opcode.LOOKUP: (None, 1),
    Opcode.FORGET: (protocol.FORGET_IN, 0),
    Opcode.GETATTR: (protocol.READ_IN, 0),
    Opcode.SETATTR: (protocol.SETATTR_IN, 0),
    Opcode.READLINK: (None, 0),
    Opcode.SYMLINK: (None, 2),
    Opcode.MKNOD: (protocol.MKNOD_IN, 1),
    Opcode.MKDIR: (protocol.MKDIR_IN, 1),
    Opcode.UNLINK: (None, 1),
    Opcode.RMDIR: (None, 1),
    Opcode.RENAME: (protocol.RENAME_IN, 2),
    Opcode.RENAME2: (protocol.RENAME2_IN, 2),
    Opcode.LINK: (protocol.LINK_IN, 1),
    Opcode.OPEN: (protocol.OPEN_IN, 0),
    Opcode.READ: (protocol.READ_IN, 0),
    Opcode.WRITE: (protocol.WRITE_IN, 1),
    Opcode.STATFS: (None, 0),
    Opcode.RELEASE: (protocol.RELEASE_IN, 0),
    Opcode.FSYNC: (protocol.FSYNC_IN, 0),
    Opcode.SETXATTR: (protocol.SETXATTR_EXT_IN, 2),
    Opcode.GETXATTR: (protocol.GETXATTR_IN, 1),
    Opcode.LISTXATTR: (protocol.GETXATTR_IN, 0),
    Opcode.REMOVEXATTR: (None, 1),
    Opcode.OPENDIR: (protocol.OPEN_IN, 0),
    Opcode.READDIR: (protocol.READ_IN, 0),
    Opcode.READDIRPLUS: (protocol.READ_IN, 0),
    Opcode.RELEASEDIR: (protocol.RELEASE_IN, 0),
    Opcode.FSYNCDIR: (protocol.FSYNC_IN, 0),
    Opcode.CREATE: (protocol.CREATE_IN, 1),
    Opcode.TMPFILE: (protocol.CREATE_IN, 1),
    Opcode.FALLOCATE: (protocol.FALLOCATE_IN, 0),
    Opcode.LSEEK: (protocol.LSEEK_IN, 0),
    Opcode.COPY_FILE_RANGE: (protocol.COPY_FILE_RANGE_IN, 0),
    Opcode.COPY_FILE_RANGE_64: (protocol.COPY_FILE_RANGE_IN, 0),
    Opcode.STATX: (protocol.STATX_IN, 0),
    Opcode.INTERRUPT: (protocol.INTERRUPT_IN, 0),
    Opcode.BATCH_FORGET: (protocol.BATCH_FORGET_IN, 0),
}
"""Fixed part of each request, and how many strings follow."""

_NAMES_NODE = (Opcode.LOOKUP, Opcode.MKDIR, Opcode.MKNOD, Opcode.SYMLINK, Opcode.CREATE)
_NAMES_HANDLE = (Opcode.OPEN, Opcode.OPENDIR)
_IN_DIRECTORIES = (Opcode.LOOKUP, Opcode.OPENDIR, Opcode.READDIR, Opcode.READDIRPLUS)
_ENTRY_SIZE, _MODE_AT = 128, 100
"""Of struct fuse_entry_out."""
_NUMBERS = (
    *(0, 1, 2, 3, 4, 7, 0o644, 4096, 1 << 20),
    *((1 << 31) - 1, 1 << 31, (1 << 32) - 1, FIRST_ID, FIRST_ID + 1, FIRST_ID + 2),
)
_WORDS = (
    b"a",
    b"b",
    b"c",
    b"d",
    b"dir",
    b"link",
    b"user.x",
    b"security.capability",
    b"system.posix_acl_access",
    b"",
    b".",
    b"..",
    b"a/b",
)
MANY = 200
"""Names f0, f1, ... that a directory may have beside those words."""
_KEPT = 40
"""Node and handle ids that are remembered; the kernel uses what it was told, most of the time."""
_ROWS = 8
"""Of a listing with entries, as many are remembered."""


class Requests:
    """An endless stream of requests, decided by `seed` and by what is learnt from replies."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.nodes = [1]
        self.handles = [1]
        self.directories = [1]
        self.listings = [1]
        self.offsets = [1 << 61]
        self.calm = False
        """Whether requests are such as a program's that only reads: then they are mostly the lane's."""
        self._opcodes: list[int] = list(LAYOUTS)
        self._calm: dict[int, Callable[[], bytes]] = {
            Opcode.LOOKUP: lambda: self.word() + b"\0",
            Opcode.FORGET: lambda: protocol.FORGET_IN.pack(1),
            Opcode.GETATTR: lambda: bytes(protocol.READ_IN.size),
            Opcode.READLINK: lambda: b"",
            Opcode.OPEN: lambda: protocol.OPEN_IN.pack(self.chance.choice((0, os.O_NOFOLLOW)), 0),
            Opcode.READ: lambda: self._reading(self.handles),
            Opcode.RELEASE: lambda: self._releasing(self.handles),
            Opcode.GETXATTR: self._asking,
            Opcode.OPENDIR: lambda: protocol.OPEN_IN.pack(os.O_DIRECTORY, 0),
            Opcode.READDIR: lambda: self._reading(self.listings),
            Opcode.READDIRPLUS: lambda: self._reading(self.listings),
            Opcode.RELEASEDIR: lambda: self._releasing(self.listings),
            Opcode.BATCH_FORGET: self._forgetting,
        }
        self._calm_opcodes: list[int] = [
            *self._calm,
            *[Opcode.LOOKUP] * 9,
            *[Opcode.OPEN, Opcode.READ] * 2,
        ]

    def number(self) -> int:
        chance = self.chance
        kind = chance.random()
        if kind < 0.35:
            return chance.choice(self.handles if kind < 0.2 else self.listings)
        if kind < 0.5:
            return chance.choice(self.nodes if kind < 0.43 else self.directories)
        if kind < 0.9:
            return chance.choice(_NUMBERS)
        return chance.getrandbits(64)

    def word(self) -> bytes:
        chance = self.chance
        kind = chance.random()
        if kind < 0.6:
            return chance.choice(_WORDS)
        if kind < 0.95:
            return b"f%d" % chance.randrange(MANY)
        return chance.randbytes(chance.choice((1, 10, 255, 256, 5000)))

    def _reading(self, handles: list[int]) -> bytes:
        chance = self.chance
        offset = chance.choice((0, 1, 2, 5, 40, 64, 300, 4096, 7000, *self.offsets))
        size = chance.choice((0, 1, 100, 200, 4096, 1 << 17, 1 << 20))
        return protocol.READ_IN.pack(chance.choice(handles), offset, size, 0, 0, 0, 0)

    def _releasing(self, handles: list[int]) -> bytes:
        return protocol.RELEASE_IN.pack(self.chance.choice(handles), 0, 0, 0)

    def _asking(self) -> bytes:
        name = b"system.posix_acl_" + self.chance.choice((b"access", b"default"))
        return protocol.GETXATTR_IN.pack(self.chance.choice((0, 100)), 0) + name + b"\0"

    def _forgetting(self) -> bytes:
        count = self.chance.randrange(4)
        rows = (struct.pack("<QQ", self.chance.choice(self.nodes), 1) for _ in range(count))
        return protocol.BATCH_FORGET_IN.pack(count, 0) + b"".join(rows)

    def body(self, opcode: int) -> bytes:
        chance = self.chance
        layout, strings = LAYOUTS.get(opcode, (None, chance.randrange(3)))
        fixed = b""
        if layout is not None:
            fixed = self._typed(layout)
        rest = b"".join(self.word() + b"\0" for _ in range(strings))
        if opcode == Opcode.WRITE:
            rest = chance.randbytes(chance.choice((0, 1, 100, 4096)))
            fixed = fixed[:16] + struct.pack("<I", len(rest)) + fixed[20:]
        elif opcode == Opcode.SETXATTR:
            name, value = self.word(), self.word()
            rest = name + b"\0" + value
            fixed = struct.pack("<I", len(value)) + fixed[4:]
        elif opcode == Opcode.BATCH_FORGET:
            rest = b"".join(struct.pack("<QQ", self.number(), self.number()) for _ in range(3))
        return fixed + rest

    def _typed(self, layout: Struct) -> bytes:
        values = []
        for code in layout.format.lstrip("<"):
            size = struct.calcsize("<" + code)
            value = self.number() & (1 << 8 * size) - 1
            if code.islower() and value >= 1 << 8 * size - 1:
                value -= 1 << 8 * size
            values.append(value)
        return layout.pack(*values)

    def request(self) -> bytes:
        chance = self.chance
        if self.calm:
            opcode = chance.choice(self._calm_opcodes)
            body = self._calm[opcode]()
        else:
            known = chance.random() < 0.97
            opcode = chance.choice(self._opcodes) if known else chance.getrandbits(8)
            body = self.body(opcode)
        node = self._node(opcode)
        pid = chance.choice((0, os.getpid(), 1, chance.getrandbits(31)))
        uid = chance.choice((0, 1000, (1 << 32) - 1))
        extensions = 0 if chance.random() < 0.98 else chance.getrandbits(16)
        unique = chance.getrandbits(63) | 1
        size = IN_HEADER.size + len(body)
        header = (size, opcode, unique, node, uid, uid, pid, extensions, 0)
        raw = bytearray(IN_HEADER.pack(*header) + body)
        damage = chance.random()
        if damage < 0.08:
            del raw[chance.randrange(len(raw)) :]
            if chance.random() < 0.7 and len(raw) >= IN_HEADER.size:
                raw[:4] = struct.pack("<I", len(raw))
        elif damage < 0.16:
            for _ in range(chance.randrange(1, 4)):
                raw[chance.randrange(len(raw))] = chance.getrandbits(8)
        elif damage < 0.17:
            raw = bytearray(chance.randbytes(chance.randrange(200)))
        return bytes(raw)

    def _node(self, opcode: int) -> int:
        kind = self.chance.random()
        if self.calm and opcode in _IN_DIRECTORIES:
            return 1 if kind < 0.6 else self.chance.choice(self.directories)
        if self.calm and kind < 0.95:
            return self.chance.choice(self.nodes)
        if kind < 0.95:
            return self.chance.choice(self.nodes if kind < 0.7 else self.directories)
        return self.number()

    def learn(self, opcode: int, body: bytes) -> None:
        """Take note of what a reply without an error tells of."""
        if opcode in _NAMES_NODE and len(body) >= _ENTRY_SIZE:
            self._told(body, 0)
        elif opcode in _NAMES_HANDLE and len(body) >= 8:
            (told,) = struct.unpack_from("<Q", body)
            handles = self.handles if opcode == Opcode.OPEN else self.listings
            handles[1:] = [told, *handles[1:_KEPT]]
        elif opcode == Opcode.READDIRPLUS:
            at = 0
            for _ in range(_ROWS):
                if at + DIRENTPLUS.size > len(body):
                    return
                self._told(body, at)
                offset, length = DIRENTPLUS.unpack_from(body, at)[-3:-1]
                self.offsets[1:] = [offset, *self.offsets[1:_KEPT]]
                at += DIRENTPLUS.size + (length + 7 & ~7)

    def _told(self, body: bytes, at: int) -> None:
        """An entry at an offset of a reply."""
        (told,) = struct.unpack_from("<Q", body, at)
        (mode,) = struct.unpack_from("<I", body, at + _MODE_AT)
        if told:
            nodes = self.directories if stat.S_ISDIR(mode) else self.nodes
            nodes[1:] = [told, *nodes[1:_KEPT]]
