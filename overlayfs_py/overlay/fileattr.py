"""The flags of chattr(1) and project ids: FS_IOC_GETFLAGS, FS_IOC_FSGETXATTR and their reverses.

As the kernel's overlayfs has them (ovl_fileattr_get(), ovl_fileattr_set()): what is asked for is the real object's; a
change copies up first; append-only and immutable go into the mark `protattr` (see protection). Of a lower object these
two are not shown, for they protect the layer and not the union.

Thread: the one that runs the verbs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from struct import Struct

from layerstore.marks import PROTATTR_APPEND, PROTATTR_IMMUTABLE
from overlayfs_py import syscalls
from overlayfs_py.errors import OverlayError
from overlayfs_py.layers.directory import DirectoryLayer
from overlayfs_py.layers.place import Place
from overlayfs_py.overlay import protection
from overlayfs_py.overlay.copy_up import copy_up, writable
from overlayfs_py.overlay.node import Node
from overlayfs_py.overlay.state import State

# <linux/fs.h>; the numbers are those of 64-bit systems.
GETFLAGS, SETFLAGS = 0x80086601, 0x40086602
FSGETXATTR, FSSETXATTR = 0x801C581F, 0x401C5820

_FLAGS = Struct("I")
_FSXATTR = Struct("IIIII8x")
"""struct fsxattr: fsx_xflags, fsx_extsize, fsx_nextents, fsx_projid, fsx_cowextsize, padding"""
_FIRST = Struct("I")

# Letter, its bit in the flags (FS_*_FL) and in fsx_xflags (FS_XFLAG_*).
_PROTECTIONS = ((PROTATTR_APPEND, 0x20, 0x10), (PROTATTR_IMMUTABLE, 0x10, 0x08))
_SIZES = {GETFLAGS: _FLAGS.size, SETFLAGS: _FLAGS.size}
_SIZES |= {FSGETXATTR: _FSXATTR.size, FSSETXATTR: _FSXATTR.size}


def real_place(state: State, node: Node) -> Place | None:
    """Where the object that stands for the node is; None if it is no file of the host."""
    if node.upper:
        return state.place(node)
    layer, ref = node.lowers[0]
    return layer.tree.at(ref) if isinstance(layer, DirectoryLayer) else None


def ioctl(state: State, node: Node, command: int, data: bytes) -> bytes:
    """Answer one of the four commands; what is set comes in `data`.

    Raises:
        OSError: ENOTTY for another command, for what is no file or directory, and where the filesystem below has no
            flags; EINVAL for data that is too short; what the filesystem says.
        Fault: from copy-up.
    """
    if command not in _SIZES or not (node.is_dir or node.kind == stat.S_IFREG):
        raise OverlayError(errno.ENOTTY)
    if command in (GETFLAGS, FSGETXATTR):
        return _get(state, node, command)
    if len(data) < _SIZES[command]:
        raise OverlayError(errno.EINVAL)
    _set(state, node, command, data[: _SIZES[command]])
    return b""


def _bits(command: int) -> list[tuple[bytes, int]]:
    short = command in (GETFLAGS, SETFLAGS)
    return [(letter, flag if short else xflag) for letter, flag, xflag in _PROTECTIONS]


def _mask(command: int) -> int:
    return sum(bit for _, bit in _bits(command))


def _get(state: State, node: Node, command: int) -> bytes:
    place = real_place(state, node)
    blank = bytes(_SIZES[command])
    value = blank if place is None else _ask(place, command, blank)
    shown = _FIRST.unpack_from(value)[0] & ~_mask(command)
    letters = state.protected.get(node.ino, b"")
    shown |= sum(bit for letter, bit in _bits(command) if letter in letters)
    return _with_first(value, shown)


def _with_first(value: bytes, first: int) -> bytes:
    return _FIRST.pack(first) + value[_FIRST.size :]


def _set(state: State, node: Node, command: int, data: bytes) -> None:
    writable(state)
    copy_up(state, node)
    place = state.place(node)
    wanted = _FIRST.unpack_from(data)[0]
    letters = b"".join(letter for letter, bit in _bits(command) if wanted & bit)
    _protect(state, node, place, letters)
    _ask(place, command, _with_first(data, wanted & ~_mask(command)))
    state.attributes_changed(node)


def _protect(state: State, node: Node, place: Place, letters: bytes) -> None:
    mark = state.marks.protattr
    if letters:
        place.setxattr(mark, letters)
    elif node.ino in state.protected:
        with contextlib.suppress(OSError):
            place.removexattr(mark)
    protection.learn(state, node, letters)


def _ask(place: Place, command: int, data: bytes) -> bytes:
    fd = place.open(os.O_RDONLY | os.O_NONBLOCK)
    try:
        return syscalls.inode_ioctl(fd, command, data)
    finally:
        os.close(fd)
