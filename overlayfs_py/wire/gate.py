"""Holds back what changes a mount, for as long as somebody reads its upper directory as it is (`commit`).

While the gate is closed a request that would change something waits where slow work waits, and starts when the
gate is opened; one that had begun goes on, and `drain` waits for its end. What only reads is not held up. What goes
past the daemon is not either: writes to files that the kernel has in passthrough.

The gate belongs to the open directory through which it was closed: with the last descriptor of that the kernel tells
us, so whoever dies with the gate closed has opened it.

Threads: `run` and `end` under the mount's lock, as `close` and `open`; `drain` and the waiting in worker threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from overlayfs_py.overlay.faults import Fault
from overlayfs_py.wire.call import Call

CHANGING = frozenset(
    {
        "mknod",
        "mkdir",
        "symlink",
        "link",
        "unlink",
        "rmdir",
        "rename",
        "setattr",
        "setxattr",
        "removexattr",
        "create",
        "tmpfile",
        "write",
        "fallocate",
        "copy_file_range",
        "copy_up",
        "mark_impure",
    }
)
"""The verbs that may change an upper directory; `open` and `ioctl` do if they are for more than reading."""

_IOC_WRITE = 1 << 30
"""In the number of an ioctl(2): the caller gives something."""


def _nobody(closed: bool) -> None:
    """Default of `Gate.told`."""


class Gate:
    """The gate of one mount, open at first.

    `told` is called when it was closed (True) and opened, for who makes changes without a call; a transport sets it.
    """

    def __init__(self) -> None:
        self.told: Callable[[bool], None] = _nobody
        self._condition = threading.Condition()
        self._begun = 0
        self._owner = 0

    def run(self, call: Call[Any]) -> Any:
        """Carry out a call's verb.

        Raises:
            Fault: the verb's own, or one that waits for the gate.
        """
        if call.begun or not _changes(call):
            return call.verb(*call.arguments)
        if self._owner:
            raise Fault(self._wait)
        try:
            return call.verb(*call.arguments)
        except Fault:
            call.begun = True
            with self._condition:
                self._begun += 1
            raise

    def end(self, call: Call[Any]) -> None:
        """A call that asked for slow work has its reply."""
        if call.begun:
            call.begun = False
            with self._condition:
                self._begun -= 1
                self._condition.notify_all()

    @property
    def owner(self) -> int:
        """The open directory that the gate is closed for, 0: it is open."""
        return self._owner

    def close(self, owner: int) -> None:
        """Let nothing begin any more; `owner` is not 0."""
        with self._condition:
            self._owner = owner
        self.told(True)

    def open(self) -> None:
        """Let everything through again."""
        with self._condition:
            self._owner = 0
            self._condition.notify_all()
        self.told(False)

    def drain(self) -> bytes:
        """Wait for the end of what had begun before the gate was closed, or until it is opened; the reply to
        whoever closed it."""
        with self._condition:
            self._condition.wait_for(lambda: not self._begun or not self._owner)
        return b""

    def _wait(self) -> None:
        with self._condition:
            self._condition.wait_for(lambda: not self._owner)


def _changes(call: Call[Any]) -> bool:
    name = call.name
    if name == "open":
        flags: int = call.arguments[1]
        return bool(flags & (os.O_ACCMODE | os.O_TRUNC))
    if name == "ioctl":
        # Programs ask every file that they open whether it is a terminal.
        command: int = call.arguments[1]
        return bool(command & _IOC_WRITE)
    return name in CHANGING
