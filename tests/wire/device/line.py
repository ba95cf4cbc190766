"""A session as the kernel meets it: one end of a socket pair stands for /dev/fuse, requests go in at the other."""

from __future__ import annotations

import os
import select
import socket
from typing import Any, cast

from overlayfs_py.wire.device import transport
from overlayfs_py.wire.device.negotiate import WRITE_MAX, Terms
from overlayfs_py.wire.device.protocol import OUT_HEADER, Init
from overlayfs_py.wire.device.session import Session
from overlayfs_py.wire.device.verbs import DeviceDispatch
from tests.wire.device.desk import AGREED, Reply

ROOM = 64 << 20
"""Bytes that may wait in either direction; a reply is up to 1 MiB, and it comes whole or not at all."""


class Line:
    """One session over `overlay`, its reader in a thread of its own.

    Args:
        laned: whether the lane answers first.
        flags: what INIT agreed on.
    """

    def __init__(
        self, overlay: Any, *, laned: bool, flags: Init = AGREED | Init.NO_OPENDIR_SUPPORT
    ) -> None:
        self._kernel, self._device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._kernel, self._device):
            _widen(end)
        self.dispatch = DeviceDispatch(cast(Any, overlay))
        terms = Terms(45, flags, WRITE_MAX)
        self.laned = transport._laned(self.dispatch, terms, backed=False) if laned else None
        self.ended = False
        self.session = Session(
            self.dispatch, self._device.fileno(), terms, self._end, laned=self.laned
        )
        self._poll = select.poll()
        self._poll.register(self._kernel, select.POLLIN)
        self._buffer = bytearray(OUT_HEADER.size + WRITE_MAX + 1)
        self.session.start()

    def _end(self) -> None:
        self.ended = True

    def put(self, raw: bytes) -> None:
        self._kernel.send(raw)

    def reply(self, timeout_s: float) -> Reply | None:
        """The next reply; None if none comes. AssertionError if it is not whole."""
        if not self._poll.poll(timeout_s * 1000):
            return None
        count = self._kernel.recv_into(self._buffer)
        assert count >= OUT_HEADER.size, f"a reply of {count} bytes"
        length, error, unique = OUT_HEADER.unpack_from(self._buffer)
        assert length == count, f"a reply of {count} bytes says that it has {length}"
        body = bytes(memoryview(self._buffer)[OUT_HEADER.size : count])
        return Reply(unique, -error if unique else error, body)

    def close(self) -> None:
        self.session.stop()
        if self.laned is not None:
            self.laned.lane.close()
        self.dispatch.close()
        self._kernel.close()
        self._device.close()


def _widen(end: socket.socket) -> None:
    """Let large replies through, as far as this user may."""
    option = 32 if os.geteuid() == 0 else socket.SO_SNDBUF  # SO_SNDBUFFORCE
    end.setsockopt(socket.SOL_SOCKET, option, ROOM)
