"""File handles of an image's inodes, as `overlay.origin` and work/index name them. Pure functions."""

from __future__ import annotations

import hashlib
import os

from layerstore.marks import Handle

TYPE = 0xF0
"""No filesystem's handles have this type; the kernel does not see them unless it is given this upper with
index=on, and then takes them for those of an unknown filesystem."""

_INO64_GEN = 0x81
"""FILEID_INO64_GEN in Linux's exportfs.h: what EROFS gives for an index that the kernel has mounted."""
_NO_UUID = bytes(16)


def identity(index: bytes) -> bytes:
    """16 bytes that stand for an image where a filesystem would have its uuid.

    Args:
        index: the path of its index, which the chain id names.
    """
    return hashlib.sha256(os.path.basename(index)).digest()[:16]


def handle_of(identity: bytes, nid: int) -> Handle:
    """The handle of an inode."""
    return Handle(TYPE, identity, nid.to_bytes(8, "little"))


def nid_of(handle: Handle, identity: bytes) -> int | None:
    """The inode that a handle means, ours or the kernel's; None if it is of something else."""
    if handle.type == TYPE and handle.uuid == identity and len(handle.fid) == 8:
        return int.from_bytes(handle.fid, "little")
    # An index has no uuid of its own.
    if handle.type == _INO64_GEN and handle.uuid == _NO_UUID and len(handle.fid) == 12:
        return int.from_bytes(handle.fid[:8], "little")
    return None
