"""How long a reader looks for the next request before it sleeps. One per thread.

Waking a sleeping thread costs more than most requests take; a thread that still looks answers at once. Looking is
worth it only while requests follow each other closely, so each miss halves the trust that hits have built up, and an
idle mount soon costs nothing.
"""

from __future__ import annotations

import os
import time

POLL_US_DEFAULT = 100
_TRUST_MAX = 8


class Patience:
    """Args: poll_us: the longest look, in microseconds; 0: never."""

    __slots__ = ("_slept_at", "_trust", "_window_s")

    def __init__(self, poll_us: int) -> None:
        self._window_s = poll_us / 1e6
        self._trust = 0
        self._slept_at = 0.0

    def deadline(self) -> float:
        """Until when to look, by time.perf_counter(); 0.0: not at all."""
        return time.perf_counter() + self._window_s if self._trust else 0.0

    def hit(self) -> None:
        """A request came while looking."""
        if self._trust < _TRUST_MAX:
            self._trust += 1

    def miss(self) -> None:
        self._trust >>= 1

    def sleep(self) -> None:
        self._slept_at = time.perf_counter()

    def woken(self) -> None:
        """A request came while asleep: would it have been worth looking?"""
        if time.perf_counter() - self._slept_at < self._window_s:
            self.hit()


def poll_us(wanted: int | None = None) -> int:
    """What to use: with one processor a thread that looks keeps the others from working."""
    if len(os.sched_getaffinity(0)) < 2:
        return 0
    return POLL_US_DEFAULT if wanted is None else wanted
