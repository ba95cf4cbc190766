"""New objects: files, directories, symlinks, special files, and further names of old ones.

Where the name is free in the upper and the owner would be right by itself, one system call makes the object in place.
Otherwise it is made in the stage, given its owner, mode and ACL there, and moved to its name by one rename.

Thread: the one that runs the verbs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import NamedTuple

from layerstore.marks import OCI_WHITEOUT_PREFIX
from overlayfs_py import syscalls
from overlayfs_py.errors import OverlayError
from overlayfs_py.layers.place import Named, Pinned, Place
from overlayfs_py.layers.upper import Upper
from overlayfs_py.overlay import acl, attributes, index, redirect
from overlayfs_py.overlay.copy_up import announce_device, copy_up, link_up, set_impure, writable
from overlayfs_py.overlay.lookup import check_name, lower_positive
from overlayfs_py.overlay.node import Node
from overlayfs_py.overlay.state import State
from overlayfs_py.overlay.values import Caller


class New(NamedTuple):
    """What is to be made: `mode` with its type; for a symlink its target, for a device its number."""

    mode: int
    rdev: int = 0
    target: bytes = b""

    @property
    def kind(self) -> int:
        return stat.S_IFMT(self.mode)

    @property
    def is_whiteout_like(self) -> bool:
        """A 0/0 character device: kept escaped, since as it is it would hide its own name."""
        return stat.S_ISCHR(self.mode) and self.rdev == 0


class Ownership(NamedTuple):
    """Stored ids, mode and ACLs of a new object."""

    uid: int
    gid: int
    mode: int
    access: bytes | None
    default: bytes | None


def prepare(state: State, parent: Node, name: bytes) -> Upper:
    """Checks and copy-ups that every new name needs.

    Raises:
        OSError: EROFS; ENAMETOOLONG; EINVAL for `.wh.` names, which layers use for whiteouts; ENOENT if the parent
            is removed; EEXIST.
        Fault: from copy-up.
    """
    upper = writable(state)
    check_name(name)
    if name.startswith(OCI_WHITEOUT_PREFIX):
        raise OverlayError(errno.EINVAL, f"{name!r} would be a whiteout")
    if not parent.linked:
        raise OverlayError(errno.ENOENT)
    copy_up(state, parent, data=False)
    return upper


def hidden_below(state: State, upper: Upper, parent: Node, name: bytes) -> bool:
    """Whether the upper has a whiteout at `name`, so that the new object must replace it.

    Raises:
        OSError: EEXIST if the name is taken.
    """
    found = upper.find(state.path(parent), name, parent.merged)
    if found is None:
        if parent.merged and lower_positive(state, parent, name):
            raise OverlayError(errno.EEXIST)
        return False
    if not found.whiteout:
        raise OverlayError(errno.EEXIST)
    return True


def ownership(
    state: State, parent: Node, mode: int, caller: Caller, *, acls: bool = True
) -> Ownership:
    """Who owns a new object of `mode`, by the rules of inode_init_owner() and posix_acl_create()."""
    if parent.inherited_gid is None:
        status = attributes.real_stat(state, parent)
        parent.inherited_gid = status.st_gid if status.st_mode & stat.S_ISGID else -1
    uid = state.ids.stored_uid(caller.uid)
    gid = state.ids.stored_gid(caller.gid)
    if parent.inherited_gid >= 0:
        gid = parent.inherited_gid
        if stat.S_ISDIR(mode):
            mode |= stat.S_ISGID
    inherited = default_acl(state, parent) if acls else None
    if inherited is None:
        return Ownership(uid, gid, mode & ~caller.umask, None, None)
    mode, access = acl.inherit(inherited, mode)
    return Ownership(uid, gid, mode, access, inherited if stat.S_ISDIR(mode) else None)


def default_acl(state: State, node: Node) -> bytes | None:
    """The default ACL of a directory that is in the upper."""
    if node.default_acl is False:
        node.default_acl = None
        if not state.config.noacl:
            with contextlib.suppress(OSError):
                node.default_acl = state.place(node).getxattr(acl.DEFAULT)
    assert not isinstance(node.default_acl, bool)
    return node.default_acl


def fits_in_place(
    state: State, parent: Node, name: bytes, owner: Ownership, caller: Caller, new: New
) -> bool:
    """Whether the object would be right as the filesystem makes it, without a second step, if the upper has nothing
    at its name."""
    assert state.upper is not None
    gid_inherited = owner.gid != state.ids.stored_gid(caller.gid)
    return (
        owner.uid == os.geteuid()
        and (gid_inherited or owner.gid == os.getegid())
        and state.upper.override is None
        and not new.is_whiteout_like
        and not (parent.merged and lower_positive(state, parent, name))
    )


def make(state: State, parent: Node, name: bytes, new: New, caller: Caller) -> None:
    """Make a new object under `name`.

    Raises:
        OSError: as `prepare` and `hidden_below`, and what the filesystem says.
        Fault: from copy-up.
    """
    upper = prepare(state, parent, name)
    owner = ownership(state, parent, new.mode, caller, acls=new.kind != stat.S_IFLNK)
    path = state.child_path(parent, name)
    if fits_in_place(state, parent, name, owner, caller, new):
        place = upper.tree.at(path)
        mode = owner.mode if owner.access is None and owner.default is None else new.mode
        # Taken in the upper: by a whiteout perhaps, which the longer way replaces.
        with contextlib.suppress(FileExistsError):
            _make_object(place, new, mode)
            if new.kind == stat.S_IFDIR:
                _after_mkdir(upper, place, parent)
            return
    over_whiteout = hidden_below(state, upper, parent, name)
    staged = stage(state, upper, new, owner)
    try:
        place = upper.staged(staged)
        if new.kind == stat.S_IFDIR and (over_whiteout or parent.merged):
            place.setxattr(upper.names.opaque, b"y")
        if new.is_whiteout_like:
            announce_device(state, upper, parent)
        upper.commit(staged, path)
    except BaseException:
        upper.discard(staged)
        raise


def _after_mkdir(upper: Upper, place: Named, parent: Node) -> None:
    """In a merge directory a new directory hides what lower layers may come to have there; nothing is there now, so
    the mark only saves lookups and may fail, as in ovl_create_upper()."""
    if parent.merged:
        with contextlib.suppress(OSError):
            place.setxattr(upper.names.opaque, b"y")


def _make_object(place: Named, new: New, mode: int) -> None:
    kind = new.kind
    if kind == stat.S_IFDIR:
        syscalls.mkdir(place.dir_fd, place.path, stat.S_IMODE(mode))
    elif kind == stat.S_IFLNK:
        syscalls.symlink(new.target, place.dir_fd, place.path)
    elif kind == stat.S_IFREG:
        fd = syscalls.create(place.dir_fd, place.path, os.O_WRONLY | os.O_EXCL, stat.S_IMODE(mode))
        os.close(fd)
    else:
        syscalls.mknod(place.dir_fd, place.path, mode, new.rdev)


def stage(state: State, upper: Upper, new: New, owner: Ownership) -> bytes:
    """Make the object in the stage, complete; returns its name there."""
    name = upper.new_name()
    place = upper.staged(name)
    try:
        if new.is_whiteout_like:
            _make_object(place, New(stat.S_IFREG), 0o600)
            place.setxattr(upper.names.escape_prefix + b"whiteout", b"y")
        elif attributes.stands_in(state, new.kind):
            _make_object(place, New(stat.S_IFREG), 0o600)
            attributes.disguise(state, place, new.mode, new.rdev)
        else:
            _make_object(place, new, new.kind | 0o700)
        finish(state, place, new, owner)
    except BaseException:
        upper.discard(name)
        raise
    return name


def finish(state: State, place: Place, new: New, owner: Ownership) -> None:
    """Give a new object its owner, mode and ACLs."""
    attributes.set_owner(state, place, owner.uid, owner.gid)
    if new.kind == stat.S_IFLNK:
        return
    attributes.set_mode(state, place, owner.mode)
    if owner.access is not None:
        place.setxattr(acl.ACCESS, owner.access)
    if owner.default is not None:
        place.setxattr(acl.DEFAULT, owner.default)


# --- files that are opened as they are made ---------------------------------------------------------------------------


def make_open(
    state: State, parent: Node, name: bytes, flags: int, mode: int, caller: Caller
) -> int:
    """open(2) with O_CREAT and O_EXCL: make a regular file and return its descriptor, for reading and writing."""
    upper = prepare(state, parent, name)
    new = New(stat.S_IFREG | stat.S_IMODE(mode))
    owner = ownership(state, parent, new.mode, caller)
    path = state.child_path(parent, name)
    if fits_in_place(state, parent, name, owner, caller, new):
        place = upper.tree.at(path)
        bits = stat.S_IMODE(owner.mode if owner.access is None else new.mode)
        with contextlib.suppress(FileExistsError):
            return syscalls.create(place.dir_fd, place.path, flags | os.O_RDWR | os.O_EXCL, bits)
    hidden_below(state, upper, parent, name)
    staged, fd = upper.stage_file()
    try:
        finish(state, upper.staged(staged), new, owner)
        upper.commit(staged, path)
    except BaseException:
        os.close(fd)
        upper.discard(staged)
        raise
    return fd


def make_nameless(state: State, parent: Node, mode: int, caller: Caller) -> int:
    """open(2) with O_TMPFILE: a file without a name; returns its descriptor, for reading and writing."""
    upper = writable(state)
    copy_up(state, parent, data=False)
    new = New(stat.S_IFREG | stat.S_IMODE(mode))
    owner = ownership(state, parent, new.mode, caller)
    fd = syscalls.tmpfile(upper.stage_fd, b".", 0o600)
    try:
        finish(state, Pinned(fd), new, owner)
    except BaseException:
        os.close(fd)
        raise
    return fd


# --- further names ----------------------------------------------------------------------------------------------------


def link(state: State, node: Node, parent: Node, name: bytes) -> None:
    """Give `node` the further name `name`.

    Raises:
        OSError: as `prepare`; EMLINK and others of the filesystem; ENOENT if the node has no name left and never was
            a nameless file.
        Fault: from copy-up.
    """
    upper = prepare(state, parent, name)
    copy_up(state, node, data=not state.config.metacopy)
    over_whiteout = hidden_below(state, upper, parent, name)
    if node.index is not None and node.linked:
        assert node.parent is not None
        link_up(state, node, node.parent, node.name)
    if node.metacopy:
        redirect.set_for_link(state, upper, node)
    index.keep_count(state, node)
    place = state.place(node)
    if node.index is not None or "origin" in _marks_of(upper, place):
        set_impure(state, upper, parent)
    if node.device:
        announce_device(state, upper, parent)
    if over_whiteout:
        staged = upper.new_name()
        place.link(upper.stage_fd, staged)
        try:
            upper.commit(staged, state.child_path(parent, name))
        except BaseException:
            upper.discard(staged)
            raise
    else:
        target = upper.tree.at(state.child_path(parent, name))
        place.link(target.dir_fd, target.path)
    node.add_name(parent, name)
    if node.pin >= 0 and node.index is None:
        node.release_pin()


def _marks_of(upper: Upper, place: Place) -> set[str]:
    prefix = upper.names.prefix.decode()
    try:
        return {name[len(prefix) :] for name in place.listxattr() if name.startswith(prefix)}
    except OSError:
        return set()
