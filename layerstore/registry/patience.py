"""How long to bear with a registry: time limits, and when to try again."""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import trio

from layerstore.registry.errors import Interruption

T = TypeVar("T")

_WAIT_SECONDS_MAX = 120.0


@dataclass(frozen=True, slots=True)
class Patience:
    """Time limits and attempts.

    `timeout_s`: how long a registry may send nothing, or next to nothing of a download, in seconds.
    `attempts`: for one request, or without progress in a download. `wait_s`: before the second
    attempt, in seconds, doubled for each one after.
    """

    timeout_s: float = 60.0
    attempts: int = 5
    wait_s: float = 0.5

    async def keep_trying(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of `attempt`, repeated as long as it raises `Interruption`.

        Raises:
            RegistryError: patience ended.
        """
        number = 0
        while True:
            try:
                return await attempt()
            except Interruption as interruption:
                number += 1
                await self.after(interruption, number)

    async def after(self, interruption: Interruption, number: int) -> None:
        """Wait before another attempt.

        Args:
            interruption: why the last one failed.
            number: of attempts that failed, from 1.

        Raises:
            RegistryError: patience ended.
        """
        if number >= min(self.attempts, interruption.attempts_max or self.attempts):
            raise interruption.error from None
        # Some 20 percent up or down, so that clients that failed together do not come together.
        seconds = self.wait_s * 2 ** (number - 1) * random.uniform(0.8, 1.2)
        await trio.sleep(min(max(seconds, interruption.wait_s or 0), _WAIT_SECONDS_MAX))


def parse_retry_after(value: str | None, now_s: float | None = None) -> float | None:
    """The seconds to wait that a Retry-After header asks for (RFC 9110, 10.2.3), None if it asks
    for nothing that is understood.

    Args:
        value: of the header.
        now_s: seconds since 1970; None: the clock's.
    """
    if value is None:
        return None
    if value.strip().isdecimal() and value.isascii():
        return float(value)
    try:
        then = email.utils.parsedate_to_datetime(value)
        return max(0.0, then.timestamp() - (time.time() if now_s is None else now_s))
    except (ValueError, OverflowError, TypeError):
        return None
