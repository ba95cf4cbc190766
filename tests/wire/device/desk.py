"""A session without a kernel: requests are put in as bytes, replies are read from a file in memory."""

from __future__ import annotations

import os
import struct
import time
from dataclasses import dataclass
from typing import Any, cast

from overlayfs_py.wire.device.negotiate import WRITE_MAX, Terms
from overlayfs_py.wire.device.protocol import IN_HEADER, OUT_HEADER, Init
from overlayfs_py.wire.device.session import Session
from overlayfs_py.wire.device.verbs import DeviceDispatch

AGREED = Init.HANDLE_KILLPRIV_V2 | Init.SETXATTR_EXT | Init.MAX_PAGES | Init.POSIX_ACL


@dataclass(frozen=True)
class Reply:
    unique: int
    error: int
    body: bytes


class Desk:
    """One session over `overlay`."""

    def __init__(self, overlay: Any, flags: Init = AGREED) -> None:
        self.fd = os.memfd_create("replies")
        self.dispatch = DeviceDispatch(cast(Any, overlay))
        self.session = Session(self.dispatch, self.fd, Terms(45, flags, WRITE_MAX), lambda: None)
        self._uniques = iter(range(2, 1 << 62, 2))

    def put(self, raw: bytes) -> None:
        """Have a request answered as a reader would."""
        buffer = bytearray(raw)
        self.session.answer(self.fd, memoryview(buffer), len(raw))

    def request(
        self, opcode: int, node: int, body: bytes = b"", *, uid: int = 0, pid: int = 0
    ) -> int:
        """Put in a well-formed request; returns its `unique`."""
        unique = next(self._uniques)
        size = IN_HEADER.size + len(body)
        self.put(IN_HEADER.pack(size, opcode, unique, node, uid, uid, pid, 0, 0) + body)
        return unique

    def ask(self, opcode: int, node: int, body: bytes = b"", **caller: int) -> Reply:
        """The one reply to a request."""
        unique = self.request(opcode, node, body, **caller)
        self.settle()
        (reply,) = [reply for reply in self.replies() if reply.unique]
        assert reply.unique == unique
        return reply

    def settle(self) -> None:
        """Wait until no slow work is under way."""
        deadline = time.monotonic() + 30
        while self.session._slow:
            assert time.monotonic() < deadline, "slow work without an end"
            time.sleep(0.0005)

    def replies(self) -> list[Reply]:
        """What was written since the last time; AssertionError if it is not whole."""
        raw = os.pread(self.fd, 1 << 22, 0)
        os.ftruncate(self.fd, 0)
        os.lseek(self.fd, 0, os.SEEK_SET)
        found = []
        while raw:
            length, error, unique = OUT_HEADER.unpack_from(raw)
            assert OUT_HEADER.size <= length <= len(raw)
            found.append(Reply(unique, -error if unique else error, raw[OUT_HEADER.size : length]))
            raw = raw[length:]
        return found

    def close(self) -> None:
        self.session.stop()
        self.dispatch.close()
        os.close(self.fd)


def number(reply: Reply) -> int:
    """The node id, file handle or other number that a reply begins with."""
    assert reply.error == 0, os.strerror(reply.error)
    return int(struct.unpack_from("<Q", reply.body)[0])
