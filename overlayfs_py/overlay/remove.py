"""unlink and rmdir: taking a name away, and leaving a whiteout exactly where a lower layer would show through.

An inode that loses its last known name may still be open, or be somebody's working directory: it is pinned first, so
that everything works on it that works on an unlinked file.

Thread: the one that runs the verbs.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from overlayfs_py.errors import OverlayError
from overlayfs_py.layers.upper import Upper
from overlayfs_py.overlay import index, merge_dir
from overlayfs_py.overlay.copy_up import copy_up, link_up, writable
from overlayfs_py.overlay.lookup import adopt, check_name, lower_positive, resolve
from overlayfs_py.overlay.node import Node
from overlayfs_py.overlay.state import State


class Existing(NamedTuple):
    """A name that is there: its node, whether the upper has the name, whether a lower layer would show at it
    otherwise."""

    node: Node
    in_upper: bool
    positive: bool


def existing(state: State, parent: Node, name: bytes) -> Existing:
    """What is at a name.

    Raises:
        OSError: ENOENT, ENAMETOOLONG, EROFS.
    """
    writable(state)
    check_name(name)
    resolved = resolve(state, parent, name)
    if resolved is None:
        raise OverlayError(errno.ENOENT)
    in_upper = resolved.upper is not None
    positive = not in_upper or lower_positive(state, parent, name)
    return Existing(adopt(state, parent, name, resolved), in_upper, positive)


def pin(state: State, node: Node) -> None:
    """Hold the upper's object of a node that is about to lose its name."""
    if node.upper and node.pin < 0 and node.index is None:
        node.pin = state.place(node).open(os.O_PATH)


def before_unlink(state: State, node: Node, parent: Node, name: bytes, in_upper: bool) -> bool:
    """What must happen before a name of an object that is no directory goes: the parent is copied up; a hard link of
    the lower is counted in the index, for which it must be there.

    Returns:
        whether the upper has the name now.
    """
    if not node.upper and state.index_on and _lower_links(node) > 1:
        copy_up(state, node)
    copy_up(state, parent, data=False)
    if node.index is not None and not in_upper:
        link_up(state, node, parent, name)
        in_upper = True
    index.keep_count(state, node)
    if not node.aliases:
        pin(state, node)
    return in_upper


def _lower_links(node: Node) -> int:
    layer, ref = node.lowers[0]
    return layer.stat(ref).st_nlink


def unlink(state: State, parent: Node, name: bytes) -> None:
    """Raises OSError: ENOENT, EISDIR, EROFS, what the filesystem says; Fault from copy-up."""
    upper = writable(state)
    node, in_upper, positive = existing(state, parent, name)
    if node.is_dir:
        raise OverlayError(errno.EISDIR)
    in_upper = before_unlink(state, node, parent, name, in_upper)
    path = state.child_path(parent, name)
    if not in_upper:
        upper.whiteout(path)
    elif positive:
        upper.replace_by_whiteout(path, directory=False)
    else:
        upper.unlink(path)
    after_unlink(state, node, parent, name)


def after_unlink(state: State, node: Node, parent: Node, name: bytes) -> None:
    node.drop_name(parent, name)
    index.drop_if_unused(state, node)


def rmdir(state: State, parent: Node, name: bytes) -> None:
    """Raises OSError: ENOENT, ENOTDIR, ENOTEMPTY, EROFS, what the filesystem says; Fault from copy-up."""
    upper = writable(state)
    node, in_upper, positive = existing(state, parent, name)
    if not node.is_dir:
        raise OverlayError(errno.ENOTDIR)
    check_empty(state, node)
    copy_up(state, parent, data=False)
    pin(state, node)
    path = state.child_path(parent, name)
    if not in_upper:
        upper.whiteout(path)
    elif positive:
        upper.replace_by_whiteout(path, directory=True)
    else:
        upper.remove_directory(path)
    directory_removed(state, node, parent, name)


def check_empty(state: State, node: Node) -> None:
    """Raises ENOTEMPTY if a directory shows any name."""
    if merge_dir.has_children(state, node):
        raise OverlayError(errno.ENOTEMPTY)


def directory_removed(state: State, node: Node, parent: Node, name: bytes) -> None:
    node.drop_name(parent, name)
    state.directories_moved()
    if parent.subdirectories is not None:
        parent.subdirectories -= 1


def clear_directory(state: State, upper: Upper, node: Node) -> None:
    """Make an upper directory that shows nothing really empty, so that another may be renamed over it.

    Whiteouts in it go only once it is opaque, for until then they hide what is below.
    """
    path = state.path(node)
    place = upper.tree.at(path)
    if node.merged and not node.opaque:
        place.setxattr(upper.names.opaque, b"y")
        node.opaque = True
    for row in list(upper.tree.scan(path)):
        upper.unlink(path + b"/" + row.name)
