"""POSIX ACLs as xattrs: what a new object inherits (acl(5), "Object creation and default ACLs"), and their ids.

The binary form is that of <linux/posix_acl_xattr.h>: u32 version 2, then (u16 tag, u16 permissions, u32 id) each.
Pure functions, any thread.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

ACCESS = "system.posix_acl_access"
DEFAULT = "system.posix_acl_default"

_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20


def _entries(raw: bytes) -> Iterator[tuple[int, int, int]]:
    yield from _ENTRY.iter_unpack(raw[4:])


def inherit(default: bytes, mode: int) -> tuple[int, bytes | None]:
    """The mode and the access ACL of an object made with `mode` in a directory with the ACL `default`.

    The umask plays no part. The ACL is None where the mode says all of it.
    """
    entries = list(_entries(default))
    has_mask = any(tag == _MASK for tag, _, _ in entries)
    result = []
    new_mode = mode & ~0o777
    for tag, entry_permissions, ident in entries:
        permissions = entry_permissions
        if tag == _USER_OBJ:
            permissions &= mode >> 6 & 7
            new_mode |= permissions << 6
        elif tag == _OTHER:
            permissions &= mode & 7
            new_mode |= permissions
        elif tag == _MASK or (tag == _GROUP_OBJ and not has_mask):
            permissions &= mode >> 3 & 7
            new_mode |= permissions << 3
        result.append(_ENTRY.pack(tag, permissions, ident))
    if len(entries) <= 3 and not has_mask:
        return new_mode, None
    return new_mode, _VERSION + b"".join(result)


def with_ids(raw: bytes, uid: Callable[[int], int], gid: Callable[[int], int]) -> bytes:
    """The same ACL with its user and group ids translated."""
    if len(raw) < 4 or (len(raw) - 4) % _ENTRY.size:
        return raw
    result = [raw[:4]]
    for tag, permissions, ident in _entries(raw):
        if tag == _USER:
            ident = uid(ident)
        elif tag == _GROUP:
            ident = gid(ident)
        result.append(_ENTRY.pack(tag, permissions, ident))
    return b"".join(result)
