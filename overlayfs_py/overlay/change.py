"""Changes to an inode's attributes and xattrs. Thread: the one that runs the verbs."""

from __future__ import annotations

import errno
import os
import stat

from layerstore.marks import MarkInvalid
from overlayfs_py import syscalls
from overlayfs_py.errors import OverlayError
from overlayfs_py.overlay import acl, attributes
from overlayfs_py.overlay.caller import is_admin
from overlayfs_py.overlay.copy_up import copy_up, writable
from overlayfs_py.overlay.handles import FileHandle
from overlayfs_py.overlay.node import Node
from overlayfs_py.overlay.privileges import clear_privileges, clear_setid, keeps_setgid
from overlayfs_py.overlay.state import State
from overlayfs_py.overlay.values import Caller, Changes

_FOREIGN_MARKS = (b"user.fuseoverlayfs.", b"security.fuseoverlayfs.")
_FOREIGN_OVERRIDE = b"user.containers.override_stat"


def setattr(
    state: State, node: Node, changes: Changes, caller: Caller, handle: FileHandle | None
) -> None:
    """chown, chmod, truncate and utimens in one; in that order, for each may undo part of the one before.

    Raises:
        OSError: EROFS, EISDIR, what the filesystem says.
        Fault: from copy-up.
    """
    writable(state)
    if changes.size is not None:
        if node.is_dir:
            raise OverlayError(errno.EISDIR)
        copy_up(state, node, size=changes.size)
    else:
        copy_up(state, node, data=False)
    place = state.place(node)
    if changes == Changes():
        clear_privileges(state, node, caller)
        return
    if node.is_dir:
        node.inherited_gid = None
    if changes.uid is not None or changes.gid is not None:
        _chown(state, node, changes, caller)
    if changes.mode is not None:
        attributes.set_mode(state, place, changes.mode)
    if changes.size is not None:
        _truncate(state, node, changes.size, caller, handle)
    if changes.atime_ns is not None or changes.mtime_ns is not None:
        place.utimens(changes.atime_ns, changes.mtime_ns)


def _chown(state: State, node: Node, changes: Changes, caller: Caller) -> None:
    place = state.place(node)
    before = attributes.placed_stat(state, place)
    uid = -1 if changes.uid is None else state.ids.stored_uid(changes.uid)
    gid = -1 if changes.gid is None else state.ids.stored_gid(changes.gid)
    attributes.set_owner(state, place, uid, gid)
    left = stat.S_ISREG(before.st_mode) and before.st_mode & stat.S_ISGID
    if left and not before.st_mode & stat.S_IXGRP and not keeps_setgid(caller, before.st_gid):
        # Made as root, the change above leaves setgid on a file that its group cannot execute; for an outsider to
        # the group it goes (setattr_should_drop_sgid()).
        mode = attributes.placed_stat(state, place).st_mode
        attributes.set_mode(state, place, mode & ~stat.S_ISGID)


def _truncate(
    state: State, node: Node, size: int, caller: Caller, handle: FileHandle | None
) -> None:
    if handle is not None and handle.in_upper and handle.writable and handle.fd is not None:
        syscalls.truncate(handle.fd, size)
    else:
        fd = state.place(node).open(os.O_WRONLY | os.O_NONBLOCK)
        try:
            syscalls.truncate(fd, size)
        finally:
            os.close(fd)
    clear_setid(state, node, caller)


# --- xattrs -----------------------------------------------------------------------------------------------------------


def _is_foreign(name: bytes) -> bool:
    return name.startswith(_FOREIGN_MARKS) or name == _FOREIGN_OVERRIDE


def _stored_name(state: State, name: bytes) -> bytes:
    """The name under which an xattr of a caller is kept.

    Raises:
        OSError: EPERM for marks of fuse-overlayfs and containers/storage, which a caller could use to change what
            the union shows, and for the one escaped name that stands for a device; EOPNOTSUPP where the escaped name
            is too long or ACLs are off.
    """
    if _is_foreign(name):
        raise OverlayError(errno.EPERM)
    if state.config.noacl and name in (acl.ACCESS.encode(), acl.DEFAULT.encode()):
        raise OverlayError(errno.EOPNOTSUPP)
    marks = state.marks
    if name == marks.whiteout:
        raise OverlayError(errno.EPERM)
    try:
        return marks.escape(name)
    except MarkInvalid:
        raise OverlayError(errno.EOPNOTSUPP) from None


def getxattr(state: State, node: Node, name: bytes) -> bytes:
    """Raises OSError: ENODATA, EOPNOTSUPP."""
    if _is_foreign(name) or name == state.marks.whiteout:
        raise OverlayError(errno.ENODATA)
    stored = _stored_name(state, name)
    if node.upper:
        value = state.place(node).getxattr(stored)
    else:
        layer, ref = node.lowers[0]
        value = layer.getxattr(ref, stored)
    if not state.ids.plain and name in (acl.ACCESS.encode(), acl.DEFAULT.encode()):
        ids = state.ids
        value = acl.with_ids(value, lambda u: ids.shown(u, 0)[0], lambda g: ids.shown(0, g)[1])
    return value


def listxattr(state: State, node: Node, caller: Caller | None) -> list[bytes]:
    """The names a caller may see: no marks, and trusted ones only for an administrator."""
    if node.upper:
        names = state.place(node).listxattr()
    else:
        layer, ref = node.lowers[0]
        names = layer.listxattr(ref)
    marks = state.marks
    hidden_device = marks.escape(marks.whiteout)
    result = []
    for text in names:
        name = os.fsencode(text)
        if marks.is_private(name) or _is_foreign(name) or name == hidden_device:
            continue
        if state.config.noacl and name in (acl.ACCESS.encode(), acl.DEFAULT.encode()):
            continue
        result.append(marks.unescape(name))
    trusted = [name for name in result if name.startswith(b"trusted.")]
    if trusted and caller is not None and not is_admin(caller):
        return [name for name in result if not name.startswith(b"trusted.")]
    return result


def setxattr(
    state: State, node: Node, name: bytes, value: bytes, flags: int, caller: Caller
) -> None:
    """Raises OSError: EEXIST, ENODATA (by `flags`), EPERM, EOPNOTSUPP, EROFS, ENOSPC; Fault from copy-up."""
    writable(state)
    stored = _stored_name(state, name)
    if flags and not node.upper:
        _check_flags(state, node, name, flags)
    copy_up(state, node, data=False)
    place = state.place(node)
    if name == acl.ACCESS.encode() or name == acl.DEFAULT.encode():
        if node.is_dir:
            node.default_acl = False
        _set_acl(state, node, name, value, flags, caller)
        return
    place.setxattr(stored, value, flags)


def _check_flags(state: State, node: Node, name: bytes, flags: int) -> None:
    """EEXIST and ENODATA before anything is copied up."""
    try:
        getxattr(state, node, name)
    except OSError as error:
        if error.errno == errno.ENODATA and flags & os.XATTR_REPLACE:
            raise
        return
    if flags & os.XATTR_CREATE:
        raise OverlayError(errno.EEXIST)


def _set_acl(
    state: State, node: Node, name: bytes, value: bytes, flags: int, caller: Caller
) -> None:
    place = state.place(node)
    if not state.ids.plain:
        value = acl.with_ids(value, state.ids.stored_uid, state.ids.stored_gid)
    place.setxattr(name, value, flags)
    if node.is_dir:
        node.inherited_gid = None
    if name != acl.ACCESS.encode():
        return
    status = attributes.placed_stat(state, place)
    if status.st_mode & stat.S_ISGID and not keeps_setgid(caller, status.st_gid):
        attributes.set_mode(state, place, status.st_mode & ~stat.S_ISGID)


def removexattr(state: State, node: Node, name: bytes) -> None:
    """Raises OSError: ENODATA, EPERM, EROFS; Fault from copy-up."""
    writable(state)
    stored = _stored_name(state, name)
    if not node.upper:
        getxattr(state, node, name)
    copy_up(state, node, data=False)
    if name == acl.DEFAULT.encode() and node.is_dir:
        node.default_acl = False
    state.place(node).removexattr(stored)
