"""What can go wrong, and how loudly it is said.

Every verb of the union raises `OSError`; `wire.dispatch` is the one place where that becomes an errno on the wire.
"""

from __future__ import annotations

import logging
import os


class UserError(Exception):
    """A mistake of the user's: one line that says what, where and what to do, shown without a traceback."""


class OverlayError(OSError):
    """An error the union itself decided on, with its cause in words.

    Args:
        errno: what the caller of the system call sees.
        cause: one line for the log.
        level: of `logging`; an everyday answer such as ENOENT is DEBUG, damage found in a layer is WARNING.
    """

    def __init__(self, errno: int, cause: str = "", level: int = logging.DEBUG) -> None:
        super().__init__(errno, cause or os.strerror(errno))
        self.cause = cause
        self.level = level
