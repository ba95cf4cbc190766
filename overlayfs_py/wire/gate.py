"""Holds back what changes a mount, for as long as somebody reads its upper directory as it is (`commit`).

While the gate is closed a request that would change something waits where slow work waits, and starts when the
gate is opened; one that had begun goes on, and `drain` waits for its end. What only reads is not held up. What goes
past the daemon is not either: writes to files that the kernel has in passthrough.

The gate belongs to the process that closed it: when the next one comes to it after the end of that, it is open.

Threads: `run` and `end` under the mount's lock, as `close` and `open`; `drain` and the waiting in worker threads.
"""

from __future__ import annotations

import os
import select
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

_LOOK_S = 0.1
"""How often whoever waits looks whether the owner is still alive."""

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
        self._life = -1

    def run(self, call: Call[Any]) -> Any:
        """Carry out a call's verb.

        Raises:
            Fault: the verb's own, or one that waits for the gate.
        """
        if call.begun or not _changes(call):
            return call.verb(*call.arguments)
        if self._owner and self.owner:
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
        """The process that the gate is closed for, 0: it is open."""
        if self._owner and _ended(self._life):
            self.open()
        return self._owner

    def close(self, owner: int) -> None:
        """Let nothing begin any more until `open`, or until that process has ended.

        Raises:
            OSError: ESRCH, nobody can tell when that would be.
        """
        life = os.pidfd_open(owner)
        with self._condition:
            self._owner, self._life = owner, life
        self.told(True)

    def open(self) -> None:
        """Let everything through again."""
        with self._condition:
            if self._owner:
                os.close(self._life)
            self._owner, self._life = 0, -1
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
            while self._owner and not _ended(self._life):
                self._condition.wait(_LOOK_S)


def _ended(life: int) -> bool:
    """Whether the process of a pidfd has ended."""
    poll = select.poll()
    poll.register(life, select.POLLIN)
    return bool(poll.poll(0))


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
