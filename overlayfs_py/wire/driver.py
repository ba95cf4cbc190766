"""Has the slow work of requests done, in trio's worker threads, and starts their verbs again.

Runs in the trio thread. A request that needs no slow work never leaves it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import trio

from overlayfs_py.overlay.faults import RESTARTS_MAX, THREADS_MAX, Fault
from overlayfs_py.wire.call import Call
from overlayfs_py.wire.dispatch import Dispatch

T = TypeVar("T")


class Driver:
    """Runs the requests of one mount."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._threads = trio.CapacityLimiter(THREADS_MAX)

    async def run(self, request: Callable[..., Call[T]], *arguments: Any) -> T:
        """The reply to a request of `Dispatch`.

        Raises:
            Refused: with the errno to reply instead.
        """
        dispatch = self._dispatch
        call = dispatch.begin(request, *arguments)
        outcome = dispatch.attempt(call)
        if not isinstance(outcome, Fault):
            return outcome
        dispatch.pin(call)
        try:
            return await self._after(call, outcome)
        finally:
            dispatch.unpin(call)

    async def _after(self, call: Call[T], fault: Fault) -> T:
        dispatch = self._dispatch
        for _ in range(RESTARTS_MAX):
            try:
                result = await trio.to_thread.run_sync(fault.work, limiter=self._threads)
            except Exception as error:
                raise dispatch.refusal(call.name, error) from None
            if fault.answer:
                return dispatch.settle(call, result)
            outcome = dispatch.attempt(call)
            if not isinstance(outcome, Fault):
                return outcome
            fault = outcome
        raise dispatch.endless(call)
