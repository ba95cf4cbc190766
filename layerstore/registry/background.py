"""trio in a thread of its own, for a caller that blocks: an importer, or a command.

So signals and Ctrl-C reach the caller in its own thread, and leaving the context ends whatever is
under way.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Background:
    """Tasks beside the caller, while the context lasts.

    `stack`: closed, within trio, after the last task has ended.
    """

    def __init__(self) -> None:
        self.stack = contextlib.AsyncExitStack()
        self._thread = threading.Thread(target=self._run, name="registry", daemon=True)
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._token: trio.lowlevel.TrioToken
        self._nursery: trio.Nursery

    def __enter__(self) -> Background:
        self._thread.start()
        try:
            self._ready.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ready.wait()
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._nursery.cancel_scope.cancel)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def run(self, function: Callable[[*Ts], Awaitable[T]], *arguments: *Ts) -> T:
        """Run an async function to its end and return what it returns."""
        return trio.from_thread.run(function, *arguments, trio_token=self._token)

    def start(self, function: Callable[[*Ts], Awaitable[Any]], *arguments: *Ts) -> None:
        """Start an async function that answers for its own errors."""

        def start_soon() -> None:
            self._nursery.start_soon(function, *arguments)

        trio.from_thread.run_sync(start_soon, trio_token=self._token)

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            self._failure = error

    async def _main(self) -> None:
        async with self.stack, trio.open_nursery() as self._nursery:
            self._token = trio.lowlevel.current_trio_token()
            self._ready.set()
            await trio.sleep_forever()
