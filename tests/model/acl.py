"""POSIX access control lists as Linux keeps them in `system.posix_acl_*` xattrs; see acl(5).

Pure functions on the xattr's bytes: a version (u32, 2), then entries of tag u16, permissions u16,
id u32.
"""

from __future__ import annotations

import errno
import struct

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NO_ID = 0xFFFFFFFF

Entries = list[tuple[int, int, int]]


def decode(value: bytes) -> Entries:
    """Entries (tag, permissions, id) of an xattr value; OSError(EINVAL) where Linux would say
    so."""
    if len(value) < 4 or (len(value) - 4) % 8 or struct.unpack_from("<I", value)[0] != 2:
        raise OSError(errno.EINVAL, "malformed ACL")
    return [struct.unpack_from("<HHI", value, at) for at in range(4, len(value), 8)]


def encode(entries: Entries) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def is_extended(entries: Entries) -> bool:
    """Whether the list says more than nine mode bits can."""
    return any(tag in (USER, GROUP, MASK) for tag, _, _ in entries)


def mode_of(entries: Entries, mode: int) -> int:
    """`mode` with its nine permission bits as the list gives them (the mask stands for the
    group)."""
    permissions = {tag: permission for tag, permission, _ in entries if tag not in (USER, GROUP)}
    group = permissions.get(MASK, permissions[GROUP_OBJ])
    return (mode & ~0o777) | permissions[USER_OBJ] << 6 | group << 3 | permissions[OTHER]


def chmod(entries: Entries, mode: int) -> Entries:
    """The list after chmod(2) to `mode`."""
    group_tag = MASK if any(tag == MASK for tag, _, _ in entries) else GROUP_OBJ
    bits = {USER_OBJ: mode >> 6 & 7, group_tag: mode >> 3 & 7, OTHER: mode & 7}
    return [(tag, bits.get(tag, permission), who) for tag, permission, who in entries]


def inherit(default: Entries, mode: int) -> tuple[Entries | None, int]:
    """What a new file gets below a directory with the default ACL `default`.

    Returns the access ACL (None if the mode says it all) and the mode; see "OBJECT CREATION AND
    DEFAULT ACLs" in acl(5). The umask plays no part.
    """
    group_tag = MASK if any(tag == MASK for tag, _, _ in default) else GROUP_OBJ
    shift = {USER_OBJ: 6, group_tag: 3, OTHER: 0}
    result: Entries = []
    for tag, permission, who in default:
        if tag in shift:
            permission &= mode >> shift[tag]
            mode &= permission << shift[tag] | ~(7 << shift[tag])
        result.append((tag, permission, who))
    return (result if is_extended(default) else None), mode
