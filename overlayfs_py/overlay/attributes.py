"""What stat(2) shows of a node, and who owns it on disk. Thread: the one that runs the verbs."""

from __future__ import annotations

import os
import stat

from layerstore.marks import OverrideStat, format_override_stat
from overlayfs_py.layers.directory import override_stat
from overlayfs_py.layers.place import Place
from overlayfs_py.overlay import merge_dir
from overlayfs_py.overlay.node import Node
from overlayfs_py.overlay.state import State
from overlayfs_py.overlay.values import Attributes

SETID = stat.S_ISUID | stat.S_ISGID


def real_stat(state: State, node: Node) -> os.stat_result:
    """The status of the object that stands for the node: the upper's, else the topmost lower's."""
    if node.upper:
        return placed_stat(state, state.place(node))
    layer, ref = node.lowers[0]
    return layer.stat(ref)


def placed_stat(state: State, place: Place) -> os.stat_result:
    """The status of an object of the upper, with the owner that an override attribute gives it."""
    assert state.upper is not None
    status = place.stat()
    if state.upper.override is None:
        return status
    try:
        raw = place.getxattr(state.upper.override)
    except OSError:
        return status
    return override_stat(status, raw)


def attributes(state: State, node: Node, status: os.stat_result | None = None) -> Attributes:
    """What callers see.

    Args:
        status: of the real object, where it is known already.
    """
    if status is None:
        status = real_stat(state, node)
    mode, rdev = status.st_mode, status.st_rdev
    if node.device:
        mode, rdev = stat.S_IFCHR | stat.S_IMODE(mode), 0
    blocks = status.st_blocks
    if node.metacopy and node.lowers:
        layer, ref = node.lowers[-1]
        blocks = layer.stat(ref).st_blocks
    uid, gid = state.ids.shown(status.st_uid, status.st_gid)
    return Attributes(
        node.ino,
        mode,
        _links(state, node, status),
        uid,
        gid,
        rdev,
        status.st_size,
        blocks,
        status.st_blksize,
        status.st_atime_ns,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def of_lookup(state: State, node: Node, status: os.stat_result) -> Attributes:
    """The attributes after a lookup that found an object with `status`; a hard link that is in the upper under
    another name has those of the upper's."""
    return attributes(state, node, None if node.index is not None else status)


def _links(state: State, node: Node, status: os.stat_result) -> int:
    if node.kind == stat.S_IFDIR:
        if not node.linked:
            return 0
        if state.config.static_nlink:
            return 1
        if node.subdirectories is None:
            node.subdirectories = merge_dir.count_subdirectories(state, node)
        return node.subdirectories + 2
    if node.index is not None:
        return status.st_nlink + node.link_offset
    if node.upper:
        return status.st_nlink
    if not node.linked:
        return 0
    if status.st_nlink > 1 and state.upper is not None and not state.index_on:
        # Copy-up will break the link: its names are files of their own from the start.
        return 1
    return status.st_nlink


def links_known(state: State, node: Node) -> int:
    """st_nlink of a directory if it was counted and nothing has changed since, else 0."""
    if not node.linked:
        return 0
    if state.config.static_nlink:
        return 1
    return 0 if node.subdirectories is None else node.subdirectories + 2


def set_owner(state: State, place: Place, uid: int, gid: int) -> None:
    """chown(2) to ids as they are stored, -1 to leave one alone; an override attribute is written instead where
    the upper has them."""
    assert state.upper is not None
    if state.upper.override is None:
        place.chown(uid, gid)
        return
    status = placed_stat(state, place)
    mode = status.st_mode
    if stat.S_ISREG(mode):
        mode &= ~stat.S_ISUID
        if mode & stat.S_IXGRP:
            mode &= ~stat.S_ISGID
    _write_override(
        state,
        place,
        status,
        mode,
        status.st_uid if uid < 0 else uid,
        status.st_gid if gid < 0 else gid,
    )


def set_mode(state: State, place: Place, mode: int) -> None:
    """chmod(2), to the permission bits of `mode`."""
    assert state.upper is not None
    if state.upper.override is None:
        place.chmod(stat.S_IMODE(mode))
        return
    status = placed_stat(state, place)
    mode = stat.S_IFMT(status.st_mode) | stat.S_IMODE(mode)
    _write_override(state, place, status, mode, status.st_uid, status.st_gid)


def _write_override(
    state: State, place: Place, status: os.stat_result, mode: int, uid: int, gid: int
) -> None:
    assert state.upper is not None
    assert state.upper.override is not None
    kind = stat.S_IFMT(mode)
    value = OverrideStat(
        uid,
        gid,
        stat.S_IMODE(mode),
        kind if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK) else 0,
        os.major(status.st_rdev) if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
        os.minor(status.st_rdev) if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
    )
    try:
        place.setxattr(state.upper.override, format_override_stat(value))
    except PermissionError:
        # A symlink has no user.* xattrs; its mode means nothing and its owner stays ours, as with fuse-overlayfs.
        if not stat.S_ISLNK(mode):
            raise


def stands_in(state: State, kind: int) -> bool:
    """Whether an object of this kind is kept as a regular file, since only that has room for the override."""
    assert state.upper is not None
    return state.upper.override is not None and kind in (
        stat.S_IFIFO,
        stat.S_IFSOCK,
        stat.S_IFCHR,
        stat.S_IFBLK,
    )


def disguise(state: State, place: Place, mode: int, rdev: int) -> None:
    """Make a new regular file stand for a special file."""
    assert state.upper is not None
    assert state.upper.override is not None
    value = OverrideStat(
        os.geteuid(),
        os.getegid(),
        stat.S_IMODE(mode),
        stat.S_IFMT(mode),
        os.major(rdev),
        os.minor(rdev),
    )
    place.setxattr(state.upper.override, format_override_stat(value))
