"""`Fault`: how a synchronous verb asks for slow work.

A verb that needs slow work (copying data, syncing, a read that is not in the page cache) raises `Fault` before it has
changed anything. Whoever runs verbs does the work off the thread that runs them, then either replies with the work's
result (`answer`) or starts the verb again from the top, as a processor restarts an instruction after a page fault.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

RESTARTS_MAX = 64
"""A verb that faults more often than this does not progress: that is a bug, answered with EIO."""

THREADS_MAX = 32
"""How many works of one mount go on at a time: enough to keep a disk's queue filled."""


class Fault(Exception):
    """Slow work that stands between a verb and its answer.

    Args:
        work: blocking, called without arguments in a worker thread; an OSError it raises is the verb's.
            Work shared by several faults (see `Shared`) is done once.
        answer: True if the result of the work is the reply, False if the verb starts again.
    """

    def __init__(self, work: Callable[[], Any], *, answer: bool = False) -> None:
        super().__init__()
        self.work = work
        self.answer = answer


class Shared:
    """Work that several verbs may wait for at once; the first thread does it, the others wait for its end.

    Each caller gets the same result, or the same error.
    """

    __slots__ = ("_error", "_lock", "_work", "done", "result")

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self.done = False
        self.result: Any = None

    def __call__(self) -> Any:
        with self._lock:
            if not self.done:
                try:
                    self.result = self._work()
                except BaseException as error:
                    self._error = error
                self.done = True
        if self._error is not None:
            raise self._error
        return self.result
