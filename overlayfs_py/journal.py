"""Where the daemon's log goes: the system's journal where one listens, else a file; stderr in the
foreground.
"""

from __future__ import annotations

import logging
import os
import stat

ENVIRONMENT = "OVERLAYFS_PY_LOG"


def path() -> str | None:
    """The file that a detached daemon logs to; None: the system's log."""
    if override := os.environ.get(ENVIRONMENT):
        return override
    try:
        if stat.S_ISSOCK(os.stat("/dev/log").st_mode):
            return None
    except OSError:
        pass
    if os.geteuid() == 0 and os.access("/var/log", os.W_OK):
        return "/var/log/overlayfs-py.log"
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(state, "overlayfs-py.log")


def place() -> str:
    """Where to look, in words."""
    return path() or "the system's log"


def start(*, foreground: bool, debug: bool) -> None:
    """Set the root logger up. A log that cannot be opened is no reason not to mount."""
    handler: logging.Handler = logging.StreamHandler()
    if not foreground:
        try:
            handler = _detached(path())
        except OSError:
            handler = logging.NullHandler()
    handler.setFormatter(
        logging.Formatter(
            "%(asctime)s overlayfs-py[%(process)d] %(levelname)s %(name)s: %(message)s"
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.INFO)


def _detached(file: str | None) -> logging.Handler:
    if file is None:
        # It brings sockets and pickle along, 15 ms that a file does not need.
        from logging.handlers import SysLogHandler

        return SysLogHandler("/dev/log", SysLogHandler.LOG_DAEMON)
    os.makedirs(os.path.dirname(file) or ".", mode=0o700, exist_ok=True)
    # Paths of layers and files of the mount's users may stand in it.
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
    return logging.FileHandler(file)
