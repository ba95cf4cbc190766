"""A mount served by the command itself (-f): same session, log on stderr."""

from __future__ import annotations

from overlayfs_py import daemon, journal
from overlayfs_py.options import MountOptions


def serve(options: MountOptions, mountpoint: bytes) -> None:
    """Mount and serve until it is unmounted or a signal asks for the end.

    Args:
        mountpoint: absolute.

    Raises:
        UserError: it cannot be mounted.
    """
    journal.start(foreground=True, debug=options.debug)
    daemon.serve(options, mountpoint, lambda: None)
