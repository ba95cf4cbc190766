"""EROFS on disk, as far as an index needs it, and composefs's header. Numbers only; see Linux's
Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h. Everything is little-endian."""

from __future__ import annotations

import struct

BLOCK_BITS = 12
BLOCK_SIZE = 1 << BLOCK_BITS
SLOT_SIZE = 32
"""Inodes start at multiples of this; a nid counts in it."""

COMPOSEFS_HEADER = struct.Struct("<IIII16x")
"""magic, version, flags, composefs version"""
COMPOSEFS_MAGIC = 0xD078629A
COMPOSEFS_VERSION = 1
COMPOSEFS_HAS_ACL = 1

SUPERBLOCK_OFFSET = 1024
SUPERBLOCK_SIZE = 128
SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23x")
"""magic, checksum, compatible features, block bits, extension slots, root nid, inodes, build time,
its nanoseconds, blocks, metadata block, xattr block, uuid, volume name, incompatible features,
compression, extra devices, device slot, directory block bits, xattr prefixes, their start,
packed nid, xattr filter reserved"""
MAGIC = 0xE0F5E1E2
COMPAT_MTIME = 2
COMPAT_XATTR_FILTER = 4
INCOMPAT_CHUNKED = 4

INODE_COMPACT = struct.Struct("<HHHHIIIIHHI")
"""format, xattr count, mode, nlink, size, 0, union, ino, uid, gid, 0"""
INODE_EXTENDED = struct.Struct("<HHHHQIIIIqII16x")
"""format, xattr count, mode, 0, size, union, ino, uid, gid, mtime, its nanoseconds, nlink"""
INODE_COMPACT_SIZE = 32
INODE_EXTENDED_SIZE = 64

LAYOUT_PLAIN = 0
LAYOUT_INLINE = 2
LAYOUT_CHUNKED = 4

CHUNK_BITS_MASK = 31
CHUNK_INDEXES = 32
"""Chunks are described by 8 bytes instead of 4."""
CHUNK_BITS_MAX = BLOCK_BITS + CHUNK_BITS_MASK
HOLE = 0xFFFFFFFF

DIRENT = struct.Struct("<QHBx")
"""nid, offset of the name from the block's start, type"""
DIRENT_SIZE = 12

XATTR_HEADER = struct.Struct("<IB7x")
"""name filter, number of shared entries"""
XATTR_HEADER_SIZE = 12
XATTR_ENTRY = struct.Struct("<BBH")
"""length of the name, index of its prefix, length of the value"""
XATTR_ENTRY_SIZE = 4
XATTR_COUNT_MAX = 0xFFFF
XATTR_VALUE_MAX = 0xFFFF
XATTR_FILTER_SEED = 0x25BBE08F

XATTR_PREFIXES = (
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
)
"""Prefix and its index. The two of ACLs are whole names."""

NAME_MAX = 255
SYMLINK_MAX = 4095
