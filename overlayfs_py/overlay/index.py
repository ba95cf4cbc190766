"""work/index: hard links of the lower layers that stay hard links over copy-up.

A lower inode with several names is copied up once, to a file in work/index named by its file handle; each of its names
becomes a link of that file when it is changed, and finds it by the handle before. Names that are still only in the
lower count in st_nlink too, which the `nlink` mark on the file says. See "Index" in overlayfs.rst and
ovl_nlink_start() in fs/overlayfs/util.c.

Thread: the one that runs the verbs.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from typing import NamedTuple

from layerstore.marks import MarkInvalid, format_nlink, parse_nlink
from overlayfs_py import syscalls
from overlayfs_py.layers.layer import Found
from overlayfs_py.layers.place import Named
from overlayfs_py.layers.upper import Upper, remove_tree
from overlayfs_py.overlay.node import Lower, Node
from overlayfs_py.overlay.state import State

log = logging.getLogger(__name__)


class Linked(NamedTuple):
    """A copied-up hard link as the index has it."""

    name: bytes
    status: os.stat_result
    link_offset: int
    metacopy: bool


def name_of(handle: bytes) -> bytes:
    return handle.hex().encode()


def of_lookup(
    state: State, upper: Found | None, lowers: tuple[Lower, ...], status: os.stat_result
) -> Linked | None:
    """The index file behind what a lookup found (in the upper, or the topmost of `lowers` with `status`), None if it
    has none."""
    if not state.index_on or stat.S_ISDIR(status.st_mode) or status.st_nlink < 2:
        return None
    handle = lowers[0].layer.handle(lowers[0].ref) if upper is None else upper.marks.get("origin")
    if not handle:
        return None
    linked = find(state, name_of(handle), status.st_nlink if upper is None else 0)
    if linked is not None and upper is not None and linked.status.st_ino != upper.stat.st_ino:
        return None
    return linked


def find(state: State, name: bytes, lower_nlink: int) -> Linked | None:
    """The file `name` of the index.

    Args:
        lower_nlink: st_nlink of the lower object, 0 if it is not at hand.
    """
    assert state.upper is not None
    if len(name) > 255:
        return None
    place = state.upper.index_place(name)
    try:
        status = place.stat()
    except FileNotFoundError:
        return None
    offset = _link_offset(state, place, status, lower_nlink)
    return Linked(name, status, offset, _is_metacopy(state.upper, place))


def _is_metacopy(upper: Upper, place: Named) -> bool:
    try:
        place.getxattr(upper.names.metacopy)
    except OSError:
        return False
    return True


def _link_offset(state: State, place: Named, status: os.stat_result, lower_nlink: int) -> int:
    assert state.upper is not None
    names = state.upper.names
    try:
        raw = place.getxattr(names.nlink)
        if raw.startswith(b"L") and not lower_nlink:
            lower_nlink = state.origin_links(place.getxattr(names.origin))
        if lower_nlink or raw.startswith(b"U"):
            return parse_nlink(raw, status.st_nlink, lower_nlink) - status.st_nlink
    except MarkInvalid as error:
        log.warning("index file %r: %s", place.path, error)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
    # One of the links is the index's own.
    return -1


def lower_name(node: Node) -> bytes | None:
    """The name in the index that the lower object of `node` has, None if it has no file handle."""
    lower: Lower = node.lowers[0]
    handle = lower.layer.handle(lower.ref)
    if handle is None or len(handle) * 2 > 255:
        return None
    return name_of(handle)


def keep_count(state: State, node: Node) -> None:
    """Before a name is added to or taken from the upper's inode: say the count relative to that inode, so that both
    change together."""
    if node.index is None:
        return
    assert state.upper is not None
    place = state.upper.index_place(node.index)
    links = place.stat().st_nlink
    value = format_nlink(links + node.link_offset, links, upper=True)
    place.setxattr(state.upper.names.nlink, value)


def drop_if_unused(state: State, node: Node) -> None:
    """After a name was removed: an index file that no name of the union leads to goes too."""
    if node.index is None:
        return
    assert state.upper is not None
    place = state.upper.index_place(node.index)
    if place.stat().st_nlink + node.link_offset > 0:
        return
    if node.pin < 0:
        node.pin = place.open(os.O_PATH)
    syscalls.unlink(place.dir_fd, place.path)
    node.index = None
    node.link_offset = 0


# --- at mount ---------------------------------------------------------------------------------------------------------


def prepare(state: State, lower_root: Lower | None) -> None:
    """Tie upper, index and lower together as the kernel does with index=on, and clear what a crash left.

    The kernel keeps the handle of the top lower's root as origin of the upper's root, and that of the upper's root
    on the index. A mismatch means that the directories belong to another mount: the index is then useless, but
    harmless, since its names are handles.
    """
    upper = state.upper
    if upper is None or not state.index_on:
        return
    root = upper.tree.at(b"")
    own = upper.filesystem.handle(root.dir_fd, root.path, of_upper=True)
    if own is not None:
        _verify(upper.work.at(b"index"), upper.names.upper, own, "the index", "this upper")
    if lower_root is not None:
        origin = lower_root.layer.handle(lower_root.ref)
        if origin is not None:
            _verify(root, upper.names.origin, origin, "the upper", "this lower")
    for row in list(upper.work.scan(b"index")):
        if row.name.startswith(b"#"):
            remove_tree(upper.index_fd, row.name)
        elif row.type == 8:
            _drop_orphan(upper, row.name)


def _verify(place: Named, mark: bytes, handle: bytes, what: str, whose: str) -> None:
    try:
        present: bytes | None = place.getxattr(mark)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        present = None
    if present is None:
        place.setxattr(mark, handle)
    elif present != handle:
        log.warning(
            "%s was not made with %s: hard links copied up then are not joined", what, whose
        )


def _drop_orphan(upper: Upper, name: bytes) -> None:
    """An index file with no other link, and no lower name that counts, is of no use."""
    place = upper.index_place(name)
    status = place.stat()
    if status.st_nlink > 1:
        return
    try:
        raw = place.getxattr(upper.names.nlink)
    except OSError:
        return
    if raw[:1] == b"U" and parse_nlink(raw, status.st_nlink, 0) <= 0:
        syscalls.unlink(place.dir_fd, place.path)
