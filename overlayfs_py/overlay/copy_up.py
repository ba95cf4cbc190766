"""Copy-up: giving an object of a lower layer a place in the upper before it is changed.

Problem: the copy must have everything (data with its holes, owner, mode, times, xattrs), appear in one step, survive
a crash at any instruction, and must not hold up other verbs while data is copied.

Chosen: data goes into a file under work/work in a worker thread, by reflink, else copy_file_range, and is synced; the
verb that needed it faults and starts again. Then the verb gives the staged file its attributes and its place by one
rename: parents first, and the parent's times are put back, for a copy-up changes nothing that callers see. The lower
does not change, so a staged copy stays good however long the verb takes to come back.

Rejected: copying under the lock (a 1 GiB file would stop the mount for seconds); renaming before the sync (after a
power cut ext4 may show an empty file where the lower had the data).

Thread: the one that runs the verbs; the copying itself is in `staged`.
"""

from __future__ import annotations

import errno
import logging
import os
import stat

from layerstore.marks import format_nlink
from overlayfs_py import syscalls
from overlayfs_py.errors import OverlayError
from overlayfs_py.layers.directory import DEVICES_MARK
from overlayfs_py.layers.place import Named, Opened, Place
from overlayfs_py.layers.upper import Upper
from overlayfs_py.overlay import attributes, index
from overlayfs_py.overlay.faults import Fault
from overlayfs_py.overlay.node import Node
from overlayfs_py.overlay.staged import InPlaceData, StagedData
from overlayfs_py.overlay.state import State

log = logging.getLogger(__name__)

INLINE_BYTES_MAX = 1 << 16
"""Data up to this size is copied in the verb itself where nothing needs to be synced; a fault costs more."""

# --- the verbs' side --------------------------------------------------------------------------------------------------


def writable(state: State) -> Upper:
    """The upper.

    Raises:
        OSError: EROFS if there is none.
    """
    if state.upper is None:
        raise OverlayError(errno.EROFS)
    return state.upper


def copy_up(state: State, node: Node, *, data: bool = True, size: int | None = None) -> None:
    """Give `node` a place in the upper, if it has none; raises Fault while its data is being copied.

    Args:
        data: False if only owner, mode, times or xattrs are to change: with metacopy=on the data stays below.
        size: how much of the data matters, where the verb truncates.
    """
    upper = writable(state)
    if node.upper:
        if data and node.metacopy:
            _complete(state, upper, node, size)
        _link_up_names(state, node)
        return
    if node.kind == stat.S_IFREG and not node.device:
        metadata_only = not data and state.config.metacopy and _may_be_metacopy(node)
        staged = None if metadata_only else _stage_data(state, upper, node, size)
    else:
        metadata_only, staged = False, None
    _copy_up_parents(state, upper, node)
    _place(state, upper, node, staged, metadata_only, size is not None)


def _may_be_metacopy(node: Node) -> bool:
    """A file with one name; for others the data is copied, since an index file has no path below it."""
    layer, ref = node.lowers[0]
    return node.linked and layer.stat(ref).st_nlink == 1


def _copy_up_parents(state: State, upper: Upper, node: Node) -> None:
    chain = []
    parent = node.parent
    while parent is not None and not parent.upper:
        chain.append(parent)
        parent = parent.parent
    for directory in reversed(chain):
        _place(state, upper, directory, None, False, False)


def _stage_data(state: State, upper: Upper, node: Node, size: int | None) -> StagedData:
    """The staged copy of the node's data, complete; faults until it is."""
    layer, ref = node.lowers[-1]
    whole = layer.stat(ref).st_size
    wanted = whole if size is None else min(size, whole)
    staged = node.staged
    if not isinstance(staged, StagedData) or staged.size < wanted or staged.failed:
        # None yet, or made for a truncation where more is needed now, or failed.
        if isinstance(staged, StagedData):
            staged.drop()
        staged = StagedData(upper, layer, ref, wanted, state.syncs and wanted > 0)
        node.staged = staged
    if not staged.work.done:
        small = wanted == 0 or (wanted <= INLINE_BYTES_MAX and not state.syncs)
        if not (small and layer.local):
            raise Fault(staged.work)
    staged.work()
    return staged


def _place(
    state: State,
    upper: Upper,
    node: Node,
    staged: StagedData | None,
    metadata_only: bool,
    truncated: bool,
) -> None:
    """Put a copy with the lower's attributes in the node's place.

    Args:
        truncated: the verb truncates, which takes file capabilities away: they are not copied, so that no crash shows
            them on other content.
    """
    layer, ref = node.lowers[0]
    status = layer.stat(ref)
    name = _stage_object(state, upper, node, staged, status)
    place = upper.staged(name)
    try:
        target = place if staged is None else Opened(staged.fd)
        copy_attributes(state, target, node, status, capability=not truncated)
        origin = _origin(state, node, status)
        if origin is not None:
            _mark(target, upper.names.origin, origin)
        if metadata_only:
            place.setxattr(upper.names.metacopy, b"")
        if _is_hard_link(state, node, status) and origin is not None:
            _enter_index(upper, node, place, name, status)
        elif node.linked:
            _enter_tree(state, upper, node, name, origin is not None)
        else:
            node.pin = place.open(os.O_PATH | os.O_NOFOLLOW)
            upper.discard(name)
    except BaseException:
        # Staged data is worth keeping for the next try only while it is untouched.
        if staged is not None:
            staged.close()
        upper.discard(name)
        node.staged = None
        raise
    if staged is not None:
        staged.close()
    if node.index is not None:
        node.lower_names = set(node.names())
    node.upper = True
    node.upper_ino = _placed_ino(state, node)
    node.metacopy = metadata_only
    node.staged = None
    if node.kind != stat.S_IFDIR and not metadata_only:
        node.lowers = ()
    _link_up_names(state, node)


def _placed_ino(state: State, node: Node) -> int:
    return state.place(node).stat().st_ino


def _stage_object(
    state: State, upper: Upper, node: Node, staged: StagedData | None, status: os.stat_result
) -> bytes:
    if staged is not None:
        return staged.name
    name = upper.new_name()
    kind = node.kind
    if node.device or kind == stat.S_IFREG or attributes.stands_in(state, kind):
        fd = syscalls.create(upper.stage_fd, name, os.O_WRONLY | os.O_EXCL, 0o600)
        try:
            if kind == stat.S_IFREG:
                # A metacopy shows the size of the data below; set first, since it takes capabilities away.
                syscalls.truncate(fd, status.st_size)
        finally:
            os.close(fd)
        if node.device:
            upper.staged(name).setxattr(upper.names.escape_prefix + b"whiteout", b"y")
        elif kind != stat.S_IFREG:
            attributes.disguise(state, upper.staged(name), status.st_mode, status.st_rdev)
    elif kind == stat.S_IFDIR:
        syscalls.mkdir(upper.stage_fd, name, 0o700)
    elif kind == stat.S_IFLNK:
        layer, ref = node.lowers[0]
        syscalls.symlink(layer.readlink(ref), upper.stage_fd, name)
    else:
        syscalls.mknod(upper.stage_fd, name, kind | 0o600, status.st_rdev)
    return name


def copy_attributes(
    state: State, place: Place, node: Node, status: os.stat_result, *, capability: bool
) -> None:
    """Owner, xattrs, mode and times of the lower object, in the order in which none undoes another."""
    if not _owned_as_made(state, status):
        attributes.set_owner(state, place, status.st_uid, status.st_gid)
    _copy_xattrs(state, place, node, capability)
    if node.kind != stat.S_IFLNK:
        attributes.set_mode(state, place, status.st_mode)
    place.utimens(status.st_atime_ns, status.st_mtime_ns)


def _owned_as_made(state: State, status: os.stat_result) -> bool:
    """Whether a file that was just staged has the owner already."""
    assert state.upper is not None
    own = (os.geteuid(), os.getegid())
    return (status.st_uid, status.st_gid) == own and state.upper.override is None


def _copy_xattrs(state: State, place: Place, node: Node, capability: bool) -> None:
    assert state.upper is not None
    layer, ref = node.lowers[0]
    names = state.upper.names
    for name in layer.listxattr(ref):
        raw_name = os.fsencode(name)
        if name == "security.capability" and not capability:
            continue
        if names.is_private(raw_name) or raw_name.startswith(
            (b"user.fuseoverlayfs.", b"security.fuseoverlayfs.", b"user.containers.override_stat")
        ):
            continue
        try:
            place.setxattr(name, layer.getxattr(ref, name))
        except OSError as error:
            # What the upper's filesystem, or our privilege, has no room for must not make the file unwritable:
            # the kernel ignores ACLs and trusted names then, and fails for the rest.
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM) or raw_name.startswith(b"user."):
                raise
            log.warning("copy-up leaves out the xattr %s: %s", name, error.strerror)


def _origin(state: State, node: Node, status: os.stat_result) -> bytes | None:
    """The handle to write as origin: none where copy-up breaks a hard link, for the copy is then another file."""
    hard_link = status.st_nlink > 1 and node.kind != stat.S_IFDIR
    if hard_link and not state.index_on:
        return None
    layer, ref = node.lowers[0]
    try:
        return layer.handle(ref)
    except OSError as error:
        log.info("no file handle of %r: %s", ref, error.strerror)
        return None


def _mark(place: Place, mark: bytes, value: bytes) -> None:
    try:
        place.setxattr(mark, value)
    except OSError as error:
        # user.* xattrs exist on files and directories only; the kernel goes on without the mark as well.
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
            raise


def _is_hard_link(state: State, node: Node, status: os.stat_result) -> bool:
    return state.index_on and node.kind != stat.S_IFDIR and status.st_nlink > 1


def _enter_tree(state: State, upper: Upper, node: Node, name: bytes, origin: bool) -> None:
    assert node.parent is not None
    parent_place = state.place(node.parent)
    before = parent_place.stat()
    if origin:
        set_impure(state, upper, node.parent)
    if node.device:
        announce_device(state, upper, node.parent)
    upper.commit(name, state.path(node))
    parent_place.utimens(before.st_atime_ns, before.st_mtime_ns)


def _enter_index(
    upper: Upper, node: Node, place: Named, name: bytes, status: os.stat_result
) -> None:
    """A hard link goes to the index first; its names follow as they are changed (`link_up`)."""
    index_name = index.lower_name(node)
    assert index_name is not None
    place.setxattr(upper.names.nlink, format_nlink(status.st_nlink, status.st_nlink, upper=False))
    syscalls.rename(place.dir_fd, name, upper.index_fd, index_name)
    node.index = index_name
    node.link_offset = status.st_nlink - 1


def _link_up_names(state: State, node: Node) -> None:
    """What was changed is in the upper under every name that it is known by."""
    while node.lower_names:
        parent, name = next(iter(node.lower_names))
        link_up(state, node, parent, name)


def link_up(state: State, node: Node, parent: Node, name: bytes) -> None:
    """Give an indexed node its name `name` in the upper, where so far only a lower layer has it."""
    upper = writable(state)
    if node.index is None:
        return
    if node.lower_names is not None:
        node.lower_names.discard((parent, name))
    path = state.child_path(parent, name)
    place = upper.tree.at(path)
    try:
        place.stat()
        return
    except FileNotFoundError:
        pass
    copy_up(state, parent, data=False)
    parent_place = state.place(parent)
    before = parent_place.stat()
    set_impure(state, upper, parent)
    source = upper.index_place(node.index)
    # A crash after the link shows one name too many; one too few could drop the index file while a name needs it.
    index.keep_count(state, node)
    source.link(place.dir_fd, place.path)
    node.link_offset -= 1
    index.keep_count(state, node)
    parent_place.utimens(before.st_atime_ns, before.st_mtime_ns)


def announce_device(state: State, upper: Upper, parent: Node) -> None:
    """Say that an upper directory has an escaped device in it, so that listings look for it."""
    name = upper.names.prefix + DEVICES_MARK.encode()
    state.place(parent).setxattr(name, b"y")


def set_impure(state: State, upper: Upper, node: Node) -> None:
    """Say that an upper directory has entries whose inode number comes from elsewhere."""
    if not node.impure:
        _mark(state.place(node), upper.names.impure, b"y")
        node.impure = True


def _complete(state: State, upper: Upper, node: Node, size: int | None) -> None:
    """Bring the data of an upper metacopy. Until the mark goes, the data below counts, so no crash shows half of it."""
    layer, ref = node.lowers[-1]
    whole = layer.stat(ref).st_size
    wanted = whole if size is None else min(size, whole)
    data = node.staged
    if not isinstance(data, InPlaceData) or data.size < wanted or data.failed:
        data = InPlaceData(state.place(node), layer, ref, wanted, state.syncs)
        node.staged = data
    if not data.work.done and wanted:
        raise Fault(data.work)
    data.work()
    state.place(node).removexattr(upper.names.metacopy)
    node.staged = None
    node.metacopy = False
    node.lowers = ()
