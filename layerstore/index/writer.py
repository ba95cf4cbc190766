"""Writes an index: a tree of `Node` as an EROFS image in composefs's layout.

The same tree gives the same bytes. Content is never here but for small files: a larger one is a
file of holes with the marks that send the kernel's overlayfs (or us) to the object.

The image is laid out in one pass over the tree, breadth first with each directory's names in order,
so that the inodes of one directory lie side by side: headers, then inodes with their xattrs and
tails, then whole blocks of directories. A second pass writes it.
"""

from __future__ import annotations

import functools
import os
import stat
import struct
from collections.abc import Iterator
from typing import BinaryIO

import xxhash

from layerstore import marks
from layerstore.errors import StoreError, show
from layerstore.index import format as f
from layerstore.index.reader import Inline, Object
from layerstore.index.tree import Node

_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}
_FIRST_INODE = f.SUPERBLOCK_OFFSET + f.SUPERBLOCK_SIZE
_ACL_NAMES = (b"system.posix_acl_access", b"system.posix_acl_default")


def write_index(root: Node, file: BinaryIO) -> None:
    """Write the tree below `root` to `file`, from its beginning.

    Raises:
        StoreError: something in the tree has no place in an index, such as 300 KB of xattrs.
        OSError: from writing.
    """
    _Writer(root).write(file)


class _Slot:
    """Where one inode goes."""

    __slots__ = ("blocks", "layout", "nid", "nlink", "node", "offset", "parent", "size", "union")

    def __init__(self, node: Node, parent: _Slot | None) -> None:
        self.node = node
        self.parent = parent or self
        self.offset = 0
        self.nid = 0
        self.nlink = 0
        self.size = 0
        self.layout = f.LAYOUT_PLAIN
        self.union = 0
        self.blocks = 0


class _Writer:
    def __init__(self, root: Node) -> None:
        if not root.is_directory:
            raise StoreError("the root of an index must be a directory")
        self._slots: dict[int, _Slot] = {}
        self._has_acl = False
        self._order = self._collect(root)
        self._place()

    def _collect(self, root: Node) -> list[_Slot]:
        first = _Slot(root, None)
        first.nlink = 2
        self._slots[id(root)] = first
        order = [first]
        for slot in order:
            children = slot.node.children
            if children is None:
                continue
            for name in sorted(children):
                _check_name(name)
                child = children[name]
                known = self._slots.get(id(child))
                if known is None:
                    known = _Slot(child, slot)
                    self._slots[id(child)] = known
                    order.append(known)
                elif child.is_directory:
                    raise StoreError(f"the directory {show(name)} is in the tree twice")
                if child.is_directory:
                    known.nlink = 2
                    slot.nlink += 1
                else:
                    known.nlink += 1
        return order

    # --- layout

    def _place(self) -> None:
        offset = _FIRST_INODE
        blocks = 0
        for slot in self._order:
            head = f.INODE_EXTENDED_SIZE + self._xattr_size(slot.node)
            tail = self._shape(slot)
            offset = _align(offset, f.SLOT_SIZE)
            if slot.layout == f.LAYOUT_INLINE:
                place = _place_tail(offset, head, tail)
                # Moving the inode so that its tail does not cross a block wastes the gap; a block
                # of its own wastes the rest of that block.
                if place is None or place - offset > f.BLOCK_SIZE - tail:
                    slot.layout = f.LAYOUT_PLAIN
                    slot.blocks += 1
                    tail = 0
                else:
                    offset = place
            slot.offset = offset
            slot.nid = offset // f.SLOT_SIZE
            if slot.blocks:
                slot.union = blocks
                blocks += slot.blocks
            offset += head + tail
        self._data_start = _align(offset, f.BLOCK_SIZE)
        first_block = self._data_start >> f.BLOCK_BITS
        for slot in self._order:
            if slot.blocks:
                slot.union += first_block
        self._blocks = first_block + blocks
        if self._blocks >= 1 << 32:
            raise StoreError("the index would be larger than EROFS allows")

    def _shape(self, slot: _Slot) -> int:
        """Choose the layout of an inode; returns the number of bytes that follow its xattrs."""
        node = slot.node
        if node.children is not None:
            slot.size = _directory_size(node.children)
        elif stat.S_ISLNK(node.mode):
            if not 0 < len(node.target) <= f.SYMLINK_MAX or b"\0" in node.target:
                raise StoreError(f"a symlink to {show(node.target[:80])!r} cannot be kept")
            slot.size = len(node.target)
        elif stat.S_ISREG(node.mode):
            return self._shape_file(slot)
        else:
            slot.union = _encode_device(node.rdev) if _is_device(node.mode) else 0
            return 0
        return _shape_data(slot)

    def _shape_file(self, slot: _Slot) -> int:
        content = slot.node.content
        slot.size = slot.node.size
        if isinstance(content, Inline):
            slot.size = len(content.data)
            return _shape_data(slot)
        slot.layout = f.LAYOUT_CHUNKED
        bits = min(max(f.BLOCK_BITS, (slot.size - 1).bit_length()), f.CHUNK_BITS_MAX)
        slot.union = bits - f.BLOCK_BITS
        return 4 * _chunk_count(slot)

    def _xattr_size(self, node: Node) -> int:
        size = sum(_entry_size(name, value) for name, value in _stored_xattrs(node))
        if not size:
            return 0
        if not self._has_acl:
            self._has_acl = any(name in node.xattrs for name in _ACL_NAMES)
        return f.XATTR_HEADER_SIZE + size

    # --- writing

    def write(self, file: BinaryIO) -> None:
        file.write(self._headers())
        offset = _FIRST_INODE
        for slot in self._order:
            file.write(bytes(slot.offset - offset))
            data = self._inode(slot)
            file.write(data)
            offset = slot.offset + len(data)
        file.write(bytes(self._data_start - offset))
        for slot in self._order:
            if slot.blocks:
                data = self._data(slot)[: slot.blocks << f.BLOCK_BITS]
                file.write(data + bytes((slot.blocks << f.BLOCK_BITS) - len(data)))

    def _headers(self) -> bytes:
        composefs = f.COMPOSEFS_HEADER.pack(
            f.COMPOSEFS_MAGIC,
            f.COMPOSEFS_VERSION,
            f.COMPOSEFS_HAS_ACL if self._has_acl else 0,
            0,
        )
        superblock = f.SUPERBLOCK.pack(
            *(f.MAGIC, 0, f.COMPAT_MTIME | f.COMPAT_XATTR_FILTER, f.BLOCK_BITS, 0),
            *(self._order[0].nid, len(self._order), 0, 0, self._blocks, 0, 0, b"", b""),
            *(f.INCOMPAT_CHUNKED, 0, 0, 0, 0, 0, 0, 0, 0),
        )
        return composefs + bytes(f.SUPERBLOCK_OFFSET - len(composefs)) + superblock

    def _inode(self, slot: _Slot) -> bytes:
        node = slot.node
        xattrs = _pack_xattrs(node)
        count = (len(xattrs) - f.XATTR_HEADER_SIZE) // 4 + 1 if xattrs else 0
        if count > f.XATTR_COUNT_MAX:
            raise StoreError(f"{len(xattrs)} bytes of xattrs on one file do not fit into an index")
        seconds, nanoseconds = divmod(node.mtime_ns, 1_000_000_000)
        try:
            inode = f.INODE_EXTENDED.pack(
                *(1 | slot.layout << 1, count, node.mode, 0, slot.size, slot.union),
                *(slot.nid & 0xFFFFFFFF, node.uid, node.gid, seconds, nanoseconds, slot.nlink),
            )
        except struct.error:
            raise StoreError(
                f"a file of {slot.size} bytes, owner {node.uid}:{node.gid}, time {seconds} s and"
                f" {slot.nlink} links does not fit into an index"
            ) from None
        if slot.layout == f.LAYOUT_INLINE:
            tail = self._data(slot)[slot.blocks << f.BLOCK_BITS :]
        elif slot.layout == f.LAYOUT_CHUNKED:
            tail = b"\xff" * (4 * _chunk_count(slot))
        else:
            tail = b""
        return inode + xattrs + tail

    def _data(self, slot: _Slot) -> bytes:
        node = slot.node
        if node.children is not None:
            return b"".join(self._directory_blocks(slot))
        if stat.S_ISLNK(node.mode):
            return node.target
        assert isinstance(node.content, Inline)
        return node.content.data

    def _directory_blocks(self, slot: _Slot) -> Iterator[bytes]:
        children = slot.node.children
        assert children is not None
        groups = _group_names(children)
        remaining = slot.size
        for names in groups:
            length = min(f.BLOCK_SIZE, remaining)
            remaining -= length
            offset = f.DIRENT_SIZE * len(names)
            entries = bytearray()
            for name in names:
                target = self._entry(slot, name)
                kind = _TYPES[stat.S_IFMT(target.node.mode)]
                entries += f.DIRENT.pack(target.nid, offset, kind)
                offset += len(name)
            block = bytes(entries) + b"".join(names)
            yield block + bytes(length - len(block))

    def _entry(self, slot: _Slot, name: bytes) -> _Slot:
        if name == b".":
            return slot
        if name == b"..":
            return slot.parent
        assert slot.node.children is not None
        return self._slots[id(slot.node.children[name])]


# --- names of directories


def _group_names(children: dict[bytes, Node]) -> list[list[bytes]]:
    """The names of a directory, `.` and `..` among them, in order and cut into blocks."""
    groups: list[list[bytes]] = [[]]
    used = 0
    for name in sorted([b".", b"..", *children]):
        size = f.DIRENT_SIZE + len(name)
        if used + size > f.BLOCK_SIZE:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups


def _directory_size(children: dict[bytes, Node]) -> int:
    groups = _group_names(children)
    last = sum(f.DIRENT_SIZE + len(name) for name in groups[-1])
    return ((len(groups) - 1) << f.BLOCK_BITS) + last


def _check_name(name: bytes) -> None:
    if not 0 < len(name) <= f.NAME_MAX or b"/" in name or b"\0" in name or name in (b".", b".."):
        raise StoreError(f"{show(name[:300])!r} is not a file name an index can hold")


# --- placement


def _align(offset: int, unit: int) -> int:
    return (offset + unit - 1) // unit * unit


def _place_tail(offset: int, head: int, tail: int) -> int | None:
    """The first place from `offset` for an inode whose `tail` bytes after `head` must not cross a
    block; None if there is none."""
    for place in range(offset, offset + f.BLOCK_SIZE, f.SLOT_SIZE):
        if (place + head) % f.BLOCK_SIZE + tail <= f.BLOCK_SIZE:
            return place
    return None


def _shape_data(slot: _Slot) -> int:
    slot.blocks, tail = divmod(slot.size, f.BLOCK_SIZE)
    if tail:
        slot.layout = f.LAYOUT_INLINE
    return tail


def _chunk_count(slot: _Slot) -> int:
    bits = f.BLOCK_BITS + (slot.union & f.CHUNK_BITS_MASK)
    return (slot.size + (1 << bits) - 1) >> bits


def _is_device(mode: int) -> bool:
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def _encode_device(rdev: int) -> int:
    """The inverse of the kernel's new_decode_dev: 12 bits of major, 20 of minor."""
    major, minor = os.major(rdev), os.minor(rdev)
    if major >= 1 << 12 or minor >= 1 << 20:
        raise StoreError(f"the device number {major}:{minor} does not fit into an index")
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


# --- xattrs


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


def _stored_xattrs(node: Node) -> Iterator[tuple[bytes, bytes]]:
    if isinstance(node.content, Object) and stat.S_ISREG(node.mode):
        yield marks.TRUSTED.metacopy, b""
        yield marks.TRUSTED.redirect, b"/" + node.content.path
    if node.xattrs:
        yield from sorted(node.xattrs.items())


def _entry_size(name: bytes, value: bytes) -> int:
    _, rest, _ = _split_xattr(name)
    return (f.XATTR_ENTRY_SIZE + len(rest) + len(value) + 3) & ~3


def _pack_xattrs(node: Node) -> bytes:
    packed = bytearray()
    present = 0
    for name, value in _stored_xattrs(node):
        index, rest, bit = _split_xattr(name)
        if len(value) > f.XATTR_VALUE_MAX:
            raise StoreError(f"the xattr {show(name)} of {len(value)} bytes does not fit")
        present |= bit
        packed += f.XATTR_ENTRY.pack(len(rest), index, len(value)) + rest + value
        packed += bytes(-len(packed) % 4)
    if not packed:
        return b""
    return f.XATTR_HEADER.pack(~present & 0xFFFFFFFF, 0) + bytes(packed)
