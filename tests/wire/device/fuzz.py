"""Arbitrary, damaged and truncated requests against a real union: `python -m tests.wire.device.fuzz`.

Each request that is to be answered gets exactly one whole reply with an errno that makes sense, no other gets any,
and nothing is logged as a bug.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import resource
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from struct import Struct

from overlayfs_py.mount import build
from overlayfs_py.options import MountOptions
from overlayfs_py.wire.device import protocol
from overlayfs_py.wire.device.protocol import IN_HEADER, NO_REPLY, Opcode
from tests.wire.device.desk import Desk, Reply

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
_NUMBERS = (0, 1, 2, 3, 4, 7, 0o644, 4096, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
_WORDS = (
    b"a",
    b"b",
    b"c",
    b"d",
    b"dir",
    b"user.x",
    b"security.capability",
    b"",
    b".",
    b"..",
    b"a/b",
)
_KEPT = 40
"""Node and handle ids that are remembered; the kernel uses what it was told, most of the time."""

_NOT_A_BUG = (
    "malformed request",
    "the kernel named",
    "forget of node",
    "no header",
    "copy-up leaves out",
    "[Errno 9]",
)


class Bugs(logging.Handler):
    """Keeps what is logged at WARNING and above and is not the request's own fault."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info or not any(words in text for words in _NOT_A_BUG):
            self.found.append(logging.Formatter("%(levelname)s %(message)s").format(record))


class Fuzzer:
    def __init__(self, desk: Desk, seed: int) -> None:
        self.desk = desk
        self.chance = random.Random(seed)
        self.nodes = [1]
        self.handles = [1]

    def number(self) -> int:
        chance = self.chance
        kind = chance.random()
        if kind < 0.35:
            return chance.choice(self.handles)
        if kind < 0.5:
            return chance.choice(self.nodes)
        if kind < 0.9:
            return chance.choice(_NUMBERS)
        return chance.getrandbits(64)

    def word(self) -> bytes:
        chance = self.chance
        if chance.random() < 0.95:
            return chance.choice(_WORDS)
        return chance.randbytes(chance.choice((1, 10, 255, 256, 5000)))

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
        known = chance.random() < 0.97
        opcode = chance.choice(list(LAYOUTS)) if known else chance.getrandbits(8)
        body = self.body(opcode)
        node = chance.choice(self.nodes) if chance.random() < 0.95 else self.number()
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

    def one(self) -> str:
        """What is wrong with the answer to one request; empty: nothing."""
        raw = self.request()
        self.desk.put(raw)
        self.desk.settle()
        replies = [reply for reply in self.desk.replies() if reply.unique]
        if len(raw) < IN_HEADER.size:
            return "an answer to no request" if replies else ""
        _, opcode, unique, *_ = IN_HEADER.unpack_from(raw)
        if opcode in NO_REPLY or unique == 0:
            return "" if unique == 0 or not replies else f"an answer to opcode {opcode}"
        if len(replies) != 1:
            return f"{len(replies)} answers to opcode {opcode}: {raw!r}"
        return self._judge(opcode, unique, replies[0])

    def _judge(self, opcode: int, unique: int, reply: Reply) -> str:
        if reply.unique != unique:
            return f"opcode {opcode}: the answer to {reply.unique}"
        if not 0 <= reply.error < 512:
            return f"opcode {opcode}: error {reply.error}"
        if reply.error and reply.body:
            return f"opcode {opcode}: {os.strerror(reply.error)} and a body"
        if not reply.error and len(reply.body) >= 8:
            (told,) = struct.unpack_from("<Q", reply.body)
            if opcode in _NAMES_NODE and told:
                self.nodes = [1, told, *self.nodes[1:_KEPT]]
            elif opcode in _NAMES_HANDLE:
                self.handles = [told, *self.handles[:_KEPT]]
        return ""


@contextmanager
def union(directory: str) -> Iterator[Desk]:
    """A union over directories of its own, with files of bounded size."""
    paths = {name: os.path.join(directory, name) for name in ("lower", "upper", "work")}
    for path in paths.values():
        os.mkdir(path)
    os.mkdir(os.path.join(paths["lower"], "dir"))
    for name in ("a", "b", "dir/c"):
        with open(os.path.join(paths["lower"], name), "wb") as file:
            file.write(b"content" * 1000)
    options = MountOptions(
        lowerdirs=[os.fsencode(paths["lower"])],
        upperdir=os.fsencode(paths["upper"]),
        workdir=os.fsencode(paths["work"]),
        fsync=False,
    )
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 24, before[1]))
    overlay = build(options)
    desk = Desk(overlay)
    try:
        yield desk
    finally:
        desk.close()
        overlay.close()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def run(inputs: int, seed: int, directory: str) -> list[str]:
    """What went wrong in so many requests."""
    bugs = Bugs()
    logger = logging.getLogger("overlayfs_py")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(bugs)
    try:
        with union(directory) as desk:
            fuzzer = Fuzzer(desk, seed)
            for number in range(inputs):
                wrong = fuzzer.one()
                if wrong:
                    bugs.found.append(f"input {number}: {wrong}")
                if bugs.found:
                    break
    finally:
        logger.removeHandler(bugs)
        logger.propagate = propagate
    return bugs.found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="how many requests")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        found = run(arguments.inputs, arguments.seed, directory)
    took = time.monotonic() - started
    print("\n".join(found) or f"{arguments.inputs} requests in {took:.0f} s: each answered as due")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
