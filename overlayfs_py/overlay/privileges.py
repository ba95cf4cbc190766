"""setuid, setgid and file capabilities: when a change to a file takes them away.

The rules are those of setattr_should_drop_suidgid() in fs/attr.c. Thread: the one that runs the verbs.
"""

from __future__ import annotations

import contextlib
import stat

from overlayfs_py.overlay import attributes
from overlayfs_py.overlay.caller import in_group, keeps_setid
from overlayfs_py.overlay.node import Node
from overlayfs_py.overlay.state import State
from overlayfs_py.overlay.values import Caller

_CAPABILITY = "security.capability"


def keeps_setgid(caller: Caller, gid: int) -> bool:
    """Whether setgid stays where the group cannot execute the file."""
    return in_group(caller, gid) or keeps_setid(caller)


def clear_setid(state: State, node: Node, caller: Caller) -> bool:
    """After a write or a truncation: clear setuid, and setgid by its rules, unless the caller may keep them.

    Returns:
        whether anything was cleared.
    """
    place = state.place(node)
    mode = attributes.placed_stat(state, place).st_mode
    cleared = _without_setid(state, node, mode, caller)
    if cleared == mode or keeps_setid(caller):
        return False
    attributes.set_mode(state, place, cleared)
    return True


def _without_setid(state: State, node: Node, mode: int, caller: Caller) -> int:
    cleared = mode & ~stat.S_ISUID
    if mode & stat.S_ISGID:
        gid = attributes.real_stat(state, node).st_gid
        if mode & stat.S_IXGRP or not keeps_setgid(caller, gid):
            cleared &= ~stat.S_ISGID
    return cleared


def clear_privileges(state: State, node: Node, caller: Caller) -> None:
    """The order to clear setuid, setgid and file capabilities, by the rules of chown(2) to the same owner."""
    if node.is_dir:
        return
    place = state.place(node)
    mode = attributes.placed_stat(state, place).st_mode
    cleared = _without_setid(state, node, mode, caller)
    if cleared != mode:
        attributes.set_mode(state, place, cleared)
    with contextlib.suppress(OSError):
        place.removexattr(_CAPABILITY)
