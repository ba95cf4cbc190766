"""rename: within the upper, with the marks that make the rest of the union follow.

A directory that lower layers show through is not copied: it gets a `redirect` mark that says where it was. A directory
that belongs to the upper alone is made opaque where it would otherwise merge with what is below its new name. A
whiteout is left at the old name exactly where a lower layer would show, in the same system call (RENAME_WHITEOUT).
See "Renaming directories" in overlayfs.rst and ovl_rename() in fs/overlayfs/dir.c.

Thread: the one that runs the verbs.
"""

from __future__ import annotations

import errno
import stat
from typing import NamedTuple

from overlayfs_py.errors import OverlayError
from overlayfs_py.layers.upper import Upper
from overlayfs_py.overlay import create, redirect, remove
from overlayfs_py.overlay.copy_up import announce_device, copy_up, link_up, set_impure
from overlayfs_py.overlay.lookup import adopt, resolve
from overlayfs_py.overlay.node import Node
from overlayfs_py.overlay.state import State
from overlayfs_py.overlay.values import Caller
from overlayfs_py.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT


class Name(NamedTuple):
    """A name in a directory."""

    parent: Node
    name: bytes


def rename(state: State, old: Name, new: Name, flags: int, caller: Caller) -> None:
    """renameat2(2).

    Raises:
        OSError: ENOENT, EEXIST, ENOTEMPTY, EISDIR, ENOTDIR, EINVAL, EROFS; EXDEV for a directory that lower layers
            show through if redirects are off.
        Fault: from copy-up.
    """
    if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT):
        raise OverlayError(errno.EINVAL)
    if flags & RENAME_EXCHANGE and flags & (RENAME_NOREPLACE | RENAME_WHITEOUT):
        raise OverlayError(errno.EINVAL)
    if not new.parent.linked:
        raise OverlayError(errno.ENOENT)
    upper = create.prepare(state, new.parent, new.name)
    node, _, positive = remove.existing(state, *old)
    target_found = resolve(state, *new)
    target = None if target_found is None else adopt(state, *new, target_found)
    if flags & RENAME_EXCHANGE:
        if target is None:
            raise OverlayError(errno.ENOENT)
        if target is not node:
            _exchange(state, upper, old, node, new, target)
        return
    if target is not None:
        if flags & RENAME_NOREPLACE:
            raise OverlayError(errno.EEXIST)
        if target is node:
            return
        _check_replaceable(state, node, target)
    _make_movable(state, node, old)
    _move(state, upper, old, node, new, target, positive)
    if flags & RENAME_WHITEOUT:
        # Seen by callers as the 0/0 device that a real filesystem would leave.
        create.make(state, *old, create.New(stat.S_IFCHR), caller)


def _check_replaceable(state: State, node: Node, target: Node) -> None:
    if node.is_dir and not target.is_dir:
        raise OverlayError(errno.ENOTDIR)
    if target.is_dir:
        if not node.is_dir:
            raise OverlayError(errno.EISDIR)
        remove.check_empty(state, target)


def _make_movable(state: State, node: Node, where: Name) -> None:
    """Copy up what is to be moved, with the name that is to be moved."""
    if node.merged and state.config.redirect_dir != "on":
        # The caller (mv) then copies the tree, as with the kernel.
        raise OverlayError(errno.EXDEV)
    copy_up(state, node, data=not state.config.metacopy)
    copy_up(state, where.parent, data=False)
    if node.index is not None:
        link_up(state, node, *where)


def _move(
    state: State,
    upper: Upper,
    old: Name,
    node: Node,
    new: Name,
    target: Node | None,
    leaves_whiteout: bool,
) -> None:
    new_path = state.child_path(*new)
    old_path = state.child_path(*old)
    if target is not None:
        _displace(state, upper, node, new, target)
    _mark_moved(state, upper, node, old, new)
    there = upper.find(state.path(new.parent), new.name, False) if node.is_dir else None
    if there is not None and there.whiteout:
        _move_over_whiteout(upper, old_path, new_path, leaves_whiteout)
    elif leaves_whiteout and upper.device_whiteouts:
        upper.rename(old_path, new_path, RENAME_WHITEOUT)
    else:
        upper.rename(old_path, new_path)
        if leaves_whiteout:
            upper.whiteout(old_path)
    _names_moved(state, old, node, new, target)


def _move_over_whiteout(
    upper: Upper, old_path: bytes, new_path: bytes, leaves_whiteout: bool
) -> None:
    """A directory cannot replace a whiteout, but change places with it, which is all if one is to stay behind."""
    upper.rename(old_path, new_path, RENAME_EXCHANGE)
    if not leaves_whiteout:
        upper.unlink(old_path)


def _displace(state: State, upper: Upper, node: Node, new: Name, target: Node) -> None:
    """Prepare for the target to lose its name to the node."""
    if target.is_dir:
        if target.upper:
            remove.pin(state, target)
            remove.clear_directory(state, upper, target)
        return
    found = upper.find(state.path(new.parent), new.name, False)
    in_upper = found is not None and not found.whiteout
    remove.before_unlink(state, target, new.parent, new.name, in_upper)


def _mark_moved(state: State, upper: Upper, node: Node, old: Name, new: Name) -> None:
    """The marks that the node needs at its new name, set before it goes there: where it is they change nothing."""
    if node.is_dir:
        if node.merged:
            redirect.set_for_rename(state, upper, node, *old, *new)
        elif new.parent.merged and not node.opaque:
            state.place(node).setxattr(upper.names.opaque, b"y")
            node.opaque = True
    elif node.metacopy:
        redirect.set_for_rename(state, upper, node, *old, *new)
    if node.merged or node.impure or _has_origin(state, upper, node):
        set_impure(state, upper, new.parent)
    if node.device:
        announce_device(state, upper, new.parent)


def _has_origin(state: State, upper: Upper, node: Node) -> bool:
    try:
        state.place(node).getxattr(upper.names.origin)
    except OSError:
        return False
    return True


def _names_moved(state: State, old: Name, node: Node, new: Name, target: Node | None) -> None:
    if target is not None:
        if target.is_dir:
            remove.directory_removed(state, target, *new)
        else:
            remove.after_unlink(state, target, *new)
    node.move(*old, *new)
    if node.is_dir:
        state.directories_moved()
        _count_moved(old.parent, new.parent)


def _count_moved(old_parent: Node, new_parent: Node) -> None:
    if old_parent.subdirectories is not None:
        old_parent.subdirectories -= 1
    if new_parent.subdirectories is not None:
        new_parent.subdirectories += 1


def _exchange(state: State, upper: Upper, old: Name, node: Node, new: Name, target: Node) -> None:
    _make_movable(state, node, old)
    _make_movable(state, target, new)
    _mark_moved(state, upper, node, old, new)
    _mark_moved(state, upper, target, new, old)
    upper.rename(state.child_path(*old), state.child_path(*new), RENAME_EXCHANGE)
    node.drop_name(*old)
    target.drop_name(*new)
    node.add_name(*new)
    target.add_name(*old)
    if node.is_dir != target.is_dir:
        directory_from, directory_to = (old, new) if node.is_dir else (new, old)
        _count_moved(directory_from.parent, directory_to.parent)
    if node.is_dir or target.is_dir:
        state.directories_moved()
