"""What a daemon without an event loop waits for: the end of its mount, or a signal that asks for it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Ending:
    """Ends once. Any thread may `mark`; `wait` and `on_signal` belong to the main thread."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._asked: list[int] = []
        self._ended = False

    def mark(self) -> None:
        """The mount is gone."""
        self._ended = True
        os.eventfd_write(self._fd, 1)

    @contextmanager
    def on_signal(self, act: Callable[[signal.Signals], None]) -> Iterator[None]:
        """Within, `wait` calls `act` at the first SIGTERM or SIGINT, and ends."""
        self._act = act
        before = {
            number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._asked.append(number)
        os.eventfd_write(self._fd, 1)

    def wait(self) -> None:
        """Block until the mount is gone; what is done at a signal is done from here."""
        while not self._ended:
            # A signal interrupts it, which os.eventfd_read leaves to its caller.
            with contextlib.suppress(InterruptedError):
                os.eventfd_read(self._fd)
            if self._asked and not self._ended:
                self._act(signal.Signals(self._asked[0]))
                return

    def close(self) -> None:
        os.close(self._fd)
