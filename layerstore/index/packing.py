"""Parts of an inode as EROFS has them: extended attributes and device numbers. Pure functions."""

from __future__ import annotations

import functools
import os
import stat

import xxhash

from layerstore import marks
from layerstore.errors import StoreError, show
from layerstore.index import format as f
from layerstore.index.reader import Object
from layerstore.index.tree import Node

_ACL_NAMES = (b"system.posix_acl_access", b"system.posix_acl_default")


def encode_device(rdev: int) -> int:
    """The inverse of the kernel's new_decode_dev: 12 bits of major, 20 of minor.

    Raises:
        StoreError: it has more.
    """
    major, minor = os.major(rdev), os.minor(rdev)
    if major >= 1 << 12 or minor >= 1 << 20:
        raise StoreError(f"the device number {major}:{minor} does not fit into an index")
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


@functools.lru_cache(maxsize=256)
def _split_xattr(name: bytes) -> tuple[int, bytes, int]:
    """Prefix index, rest of the name, and bit of the name filter."""
    for prefix, index in f.XATTR_PREFIXES:
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            if len(name) > f.NAME_MAX or (prefix.startswith(b"system.") and rest):
                break
            bit = xxhash.xxh32_intdigest(rest, f.XATTR_FILTER_SEED + index) & 31
            return index, rest, 1 << bit
    raise StoreError(f"the xattr {show(name)} has no place in an index")


def can_store_xattr(name: bytes) -> bool:
    """Whether an index has a place for xattrs of this name: EROFS knows user, trusted, security
    and the two of ACLs."""
    try:
        _split_xattr(name)
    except StoreError:
        return False
    return True


def has_acl(node: Node) -> bool:
    """Whether an inode has an ACL."""
    return bool(node.xattrs) and any(name in node.xattrs for name in _ACL_NAMES)


def pack_xattrs(node: Node) -> bytes:
    """The xattrs of an inode, and the two marks that send to its object if it has one: metacopy first,
    the others in the order of their names.

    Raises:
        StoreError: they do not fit.
    """
    packed = b""
    present = 0
    if isinstance(node.content, Object) and stat.S_ISREG(node.mode):
        head, present = _object_marks(len(node.content.path))
        packed = head + node.content.path
        packed += bytes(-len(packed) % 4)
    if node.xattrs:
        for name, value in sorted(node.xattrs.items()):
            packed += _pack_xattr(name, value)
            present |= _split_xattr(name)[2]
    if not packed:
        return b""
    packed = f.XATTR_HEADER.pack(~present & 0xFFFFFFFF, 0) + packed
    if xattr_count(packed) > f.XATTR_COUNT_MAX:
        raise StoreError(f"{len(packed)} bytes of xattrs on one file do not fit into an index")
    return packed


def xattr_count(packed: bytes) -> int:
    """How the length of packed xattrs stands in an inode."""
    return (len(packed) - f.XATTR_HEADER_SIZE) // 4 + 1 if packed else 0


@functools.lru_cache(maxsize=16)
def _object_marks(path_length: int) -> tuple[bytes, int]:
    """The marks of an object up to its path, and their bits in the name filter."""
    path = bytes(path_length)
    packed = _pack_xattr(marks.TRUSTED.metacopy, b"")
    redirect = _pack_xattr(marks.TRUSTED.redirect, b"/" + path)
    head = packed + redirect[: redirect.rindex(b"/") + 1]
    return head, _split_xattr(marks.TRUSTED.metacopy)[2] | _split_xattr(marks.TRUSTED.redirect)[2]


def _pack_xattr(name: bytes, value: bytes) -> bytes:
    index, rest, _ = _split_xattr(name)
    if len(value) > f.XATTR_VALUE_MAX:
        raise StoreError(f"the xattr {show(name)} of {len(value)} bytes does not fit")
    packed = f.XATTR_ENTRY.pack(len(rest), index, len(value)) + rest + value
    return packed + bytes(-len(packed) % 4)
