"""What of a directory needs no verb: its plain lower directories, for who answers lookups in them by himself.

Thread: the one that runs the verbs.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from overlayfs_py.layers.directory import DEVICES_MARK, DirectoryLayer
from overlayfs_py.layers.image import ImageLayer
from overlayfs_py.layers.upper import Upper
from overlayfs_py.overlay import protection
from overlayfs_py.overlay.lookup import breaks_links
from overlayfs_py.overlay.node import Lower, Node, make_node
from overlayfs_py.overlay.state import State

_POSITIONS_MAX = 1 << 14


class Part(NamedTuple):
    """A real directory: `path` below the descriptor `root_fd`; st_ino of what is in it is `position` << 48 | its own,
    as identity.InodeNumbers makes it. `open_flags` are those that its files are opened with."""

    root_fd: int
    path: bytes
    device: int
    position: int
    open_flags: int


class ImagePart(NamedTuple):
    """A directory of an image: the descriptors of its index and of the objects, the directory's inode number in it;
    st_ino of what is in it is `position` << 48 | its own."""

    index_fd: int
    objects_fd: int
    nid: int
    position: int


class PlainDirectory(NamedTuple):
    """The lower directories, top first, and the upper one as (root descriptor, path, st_dev, position, whether it is
    marked impure).

    The topmost that has a name decides. If that is a plain file or a symlink, and, where it is empty, without xattrs,
    its status is what callers see. A directory without xattrs shows what is in it, and below that what is in those
    further down, as long as they are such directories too. `image`: the one lower directory is in an image.
    `listable`: a listing shows what is there, device by device; never where the upper is merged with others.
    """

    parts: list[Part]
    image: ImagePart | None
    upper: tuple[int, bytes, int, int, bool] | None
    listable: bool


def plain_directory(state: State, node: Node) -> PlainDirectory | None:
    """What is plain about a directory; None where its names take more than looking.

    Raises OSError where a layer cannot be read.
    """
    if not (node.is_dir and node.linked and state.config.caching and state.ids.plain):
        return None
    if node.ino in state.protected:
        return None
    upper = None
    if node.upper:
        assert state.upper is not None
        if state.upper.override is not None:
            return None
        path = state.path(node)
        device = state.upper.stat(path).st_dev
        position = state.numbers.register(device)
        upper = state.upper.tree.fd, path, device, position, node.impure
        listable = not node.merged and _lists_itself(state.upper, path)
    else:
        listable = not breaks_links(state)
    image = _image_part(state, node.lowers)
    if image is not None:
        return PlainDirectory([], image, upper, listable)
    parts = []
    for layer, ref in node.lowers:
        if not isinstance(layer, DirectoryLayer) or not isinstance(ref, bytes):
            return None
        if layer.override is not None or layer.follows_metacopy or layer.xwhiteouts:
            return None
        marks = layer.marks(ref)
        if DEVICES_MARK in marks or layer.xwhiteouts:
            return None
        status = layer.stat(ref)
        position = state.numbers.register(layer.device(status))
        if position >= _POSITIONS_MAX:
            return None
        noatime = os.O_NOATIME if layer.tree.asks_noatime else 0
        parts.append(Part(layer.tree.fd, ref, status.st_dev, position, noatime))
    return PlainDirectory(parts, None, upper, listable)


def _lists_itself(upper: Upper, path: bytes) -> bool:
    """Whether the names and numbers in an upper directory that nothing is merged with are those that callers see: none
    of them stands for something else, nor has its number from where it was copied up."""
    names = upper.names
    place = upper.tree.at(path)
    marks = [name for name in map(os.fsencode, place.listxattr()) if names.is_private(name)]
    return not marks or (marks == [names.opaque] and place.getxattr(names.opaque) == b"y")


def _image_part(state: State, lowers: tuple[Lower, ...]) -> ImagePart | None:
    if len(lowers) != 1:
        return None
    layer, ref = lowers[0]
    if not isinstance(layer, ImageLayer):
        return None
    position = state.numbers.register(layer.identity)
    if position >= _POSITIONS_MAX:
        return None
    return ImagePart(layer.index.fileno(), layer.objects_fd, ref, position)


def changes_plainly(state: State) -> bool:
    """Whether what the upper's filesystem makes of a change is what callers are to see: owners, modes and ACLs as they
    are, whiteouts as devices."""
    return (
        state.upper is not None
        and state.upper.override is None
        and state.upper.device_whiteouts
        and state.ids.plain
        and not state.config.noacl
    )


class PlainCopies(NamedTuple):
    """How plain files are copied up without a verb: the descriptor of work/work, the name of the origin mark, whether
    data is synced before it is seen, and the layers whose files may be, as (descriptor of the root or of the objects,
    position of the filesystem that the root is on, origin that a copy of the root would have)."""

    stage_fd: int
    origin: bytes
    syncs: bool
    layers: list[tuple[int, int, bytes]]


def plain_copies(state: State) -> PlainCopies | None:
    """What a copy-up without a verb needs; None where there is none, or not each copies data."""
    upper = state.upper
    if upper is None or not changes_plainly(state) or state.config.metacopy:
        return None
    layers = []
    for layer in state.lowers:
        status = layer.stat(layer.root())
        origin = layer.handle(layer.root())
        device = layer.device(status)
        position = state.numbers.register(device)
        # Elsewhere the copy has another number once its node is forgotten, which verbs know about.
        known = origin is not None and (
            state.origin_ino(origin) == state.numbers.number(device, status.st_ino)
        )
        if origin is not None and known and position < _POSITIONS_MAX:
            fd = layer.objects_fd if isinstance(layer, ImageLayer) else layer.statfs_fd
            layers.append((fd, position, origin))
    return PlainCopies(upper.stage_fd, upper.names.origin, state.syncs, layers)


def nameless_upper(state: State, pin: int, ino: int) -> Node:
    """The node of an upper object that lost its name to a change that no verb made; keeps the descriptor.

    Args:
        ino: its st_ino, which is the lower's if it was copied up.
    """
    status = os.fstat(pin)
    node = make_node(ino, stat.S_IFMT(status.st_mode), None, b"")
    node.upper = True
    node.upper_ino = status.st_ino
    node.pin = pin
    if state.protected:
        protection.learn(state, node, None)
    state.nodes.add(node)
    return node


def nameless_lower(state: State, lower: Lower, ino: int) -> Node:
    """The same of a lower object that a whiteout hides."""
    node = Node(ino, stat.S_IFMT(lower.layer.stat(lower.ref).st_mode), None, b"")
    node.lowers = (lower,)
    state.nodes.add(node)
    return node


def below(state: State, root_fd: int, path: bytes) -> Lower:
    """An object of the directory layer whose root is open as `root_fd`."""
    return next(
        Lower(layer, path)
        for layer in state.lowers
        if isinstance(layer, DirectoryLayer) and layer.tree.fd == root_fd
    )


def in_image(state: State, index_fd: int, nid: int) -> Lower:
    """An object of the image whose index is open as `index_fd`."""
    return next(
        Lower(layer, nid)
        for layer in state.lowers
        if isinstance(layer, ImageLayer) and layer.index.fileno() == index_fd
    )
