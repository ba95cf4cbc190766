"""The event loop of a daemon with pyfuse3: its mount, and the signals that end it. Runs in the main thread."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable

import trio

from overlayfs_py.mount import Mount
from overlayfs_py.options import MountOptions
from overlayfs_py.unmount import detach

log = logging.getLogger(__name__)


def run(options: MountOptions, mountpoint: bytes, on_live: Callable[[], None]) -> None:
    """Serve one mount until it is gone.

    Args:
        mountpoint: absolute, without symlinks.
        on_live: called in the loop's thread when the mount answers; what it raises ends the mount.

    Raises:
        UserError: the mount was refused.
    """
    failures: list[BaseException] = []

    async def main() -> None:
        mount = Mount(options, mountpoint)
        async with trio.open_nursery() as nursery:

            def live() -> None:
                # Called from inside the transport, which has no use for our exceptions.
                try:
                    on_live()
                except Exception as error:
                    failures.append(error)
                    nursery.cancel_scope.cancel()

            await nursery.start(_unmount_on_signal, mountpoint, nursery.cancel_scope)
            await mount.serve_by_pyfuse3(live)
            nursery.cancel_scope.cancel()

    try:
        trio.run(main)
    except BaseExceptionGroup as group:
        failures.append(_only(group))
    if failures:
        raise failures[0]


def _only(error: BaseException) -> BaseException:
    """What is inside trio's groups, where it is one exception."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def _unmount_on_signal(
    mountpoint: bytes,
    scope: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    """The first SIGTERM or SIGINT unmounts; files that are still open then end with ENOTCONN."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("%s: unmounting %s", signal.Signals(number).name, os.fsdecode(mountpoint))
            # The unmount asks this very process for what is still to be written.
            await trio.to_thread.run_sync(detach, mountpoint)
            scope.cancel()
            return
