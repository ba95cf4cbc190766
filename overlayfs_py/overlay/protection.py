"""Append-only and immutable objects (chattr(1)): what may not be done to them. Thread: the one that runs the verbs.

The upper's own object has neither flag, as with the kernel's overlayfs: it would keep the union itself from linking,
copying and whiting out. So nobody but the union enforces them, by the rules of the VFS (may_open(), may_delete() and
notify_change()). Only what was found with the mark is in `State.protected`, so a union without such objects pays one
look at an empty dict.
"""

from __future__ import annotations

import errno
import os

from layerstore.marks import PROTATTR_APPEND, PROTATTR_IMMUTABLE
from overlayfs_py.errors import OverlayError
from overlayfs_py.overlay.node import Node
from overlayfs_py.overlay.state import State
from overlayfs_py.overlay.values import NOW, Changes

_KEEP_SIZE = 1


def learn(state: State, node: Node, letters: bytes | None) -> None:
    """Take over what a node's mark says; None: it has none, whoever had its number before."""
    if letters:
        state.protected[node.ino] = letters
    else:
        state.protected.pop(node.ino, None)


def _flags(state: State, node: Node) -> tuple[bool, bool]:
    """Whether a node is append-only, and whether it is immutable."""
    letters = state.protected.get(node.ino, b"")
    return PROTATTR_APPEND in letters, PROTATTR_IMMUTABLE in letters


def _refuse(wrong: bool) -> None:
    if wrong:
        raise OverlayError(errno.EPERM)


def check_directory(state: State, directory: Node, *, removes: bool = False) -> None:
    """A name is made in a directory, or removed from it. This and what follows: OSError EPERM if that may not be."""
    append, immutable = _flags(state, directory)
    _refuse(immutable or (append and removes))


def check_object(state: State, node: Node) -> None:
    """An object is linked, removed or renamed, or one of its xattrs is changed."""
    _refuse(any(_flags(state, node)))


def check_open(state: State, node: Node, flags: int) -> None:
    append, immutable = _flags(state, node)
    writes = flags & os.O_ACCMODE != os.O_RDONLY
    truncates = bool(flags & os.O_TRUNC)
    _refuse((immutable and writes) or ((append or immutable) and truncates))
    _refuse(append and writes and not flags & os.O_APPEND)


def check_change(state: State, node: Node, changes: Changes) -> None:
    """setattr; of an append-only file the times may be set to the clock, as a write does."""
    if changes == Changes():
        return
    append, immutable = _flags(state, node)
    touch = changes == Changes(atime_ns=NOW, mtime_ns=NOW)
    _refuse(immutable or (append and not touch))


def check_fallocate(state: State, node: Node, mode: int) -> None:
    append, immutable = _flags(state, node)
    _refuse(immutable or (append and mode & ~_KEEP_SIZE != 0))


def check_copy(state: State, target: Node) -> None:
    """copy_file_range into a file."""
    _refuse(_flags(state, target)[1])
