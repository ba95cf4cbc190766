"""What of a directory needs no verb: its plain lower directories, for who answers lookups in them by himself.

Thread: the one that runs the verbs.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from overlayfs_py.layers.directory import DEVICES_MARK, DirectoryLayer
from overlayfs_py.layers.image import ImageLayer
from overlayfs_py.overlay.lookup import breaks_links
from overlayfs_py.overlay.node import Lower, Node
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
    """The lower directories, top first, and the upper one as (descriptor, path).

    The topmost that has a name decides. If that is a plain file or a symlink, and, where it is empty, without xattrs,
    its status is what callers see. A directory without xattrs shows what is in it, and below that what is in those
    further down, as long as they are such directories too. `image`: the one lower directory is in an image.
    `listable`: a listing shows what is there, device by device.
    """

    parts: list[Part]
    image: ImagePart | None
    upper: tuple[int, bytes] | None
    listable: bool


def plain_directory(state: State, node: Node) -> PlainDirectory | None:
    """What is plain about a directory; None where its names take more than looking.

    Raises OSError where a layer cannot be read.
    """
    if not (node.is_dir and node.linked and state.config.caching and state.ids.plain):
        return None
    upper = None
    if node.upper:
        assert state.upper is not None
        if state.upper.override is not None:
            return None
        upper = state.upper.tree.fd, state.path(node)
    image = _image_part(state, node.lowers)
    if image is not None:
        return PlainDirectory([], image, upper, not breaks_links(state))
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
    return PlainDirectory(parts, None, upper, not breaks_links(state))


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
