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
from array import array
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


class _Writer:
    """One image. Inodes have numbers, in the order in which they are laid out; what is known of each
    is in arrays of one item an inode, as objects would take more memory than the tree itself."""

    def __init__(self, root: Node) -> None:
        if not root.is_directory:
            raise StoreError("the root of an index must be a directory")
        self._has_acl = False
        self._nodes = [root]
        self._parents = array("L", [0])
        self._nlinks = array("L", [2])
        self._collect()
        count = len(self._nodes)
        self._nids = array("Q", bytes(8 * count))
        self._unions = array("Q", bytes(8 * count))
        self._block_counts = array("Q", bytes(8 * count))
        self._layouts = bytearray(count)
        self._sizes = [0] * count
        self._place()

    def _collect(self) -> None:
        nodes, parents, nlinks = self._nodes, self._parents, self._nlinks
        nodes[0].number = 0
        for number, node in enumerate(nodes):
            if node.children is None:
                continue
            for name in sorted(node.children):
                _check_name(name)
                child = node.children[name]
                known = child.number
                if known < len(nodes) and nodes[known] is child:
                    if child.is_directory:
                        raise StoreError(f"the directory {show(name)} is in the tree twice")
                    nlinks[known] += 1
                    continue
                child.number = len(nodes)
                nodes.append(child)
                parents.append(number)
                nlinks.append(2 if child.is_directory else 1)
                if child.is_directory:
                    nlinks[number] += 1

    # --- layout

    def _place(self) -> None:
        offset = _FIRST_INODE
        blocks = 0
        for number, node in enumerate(self._nodes):
            head = f.INODE_EXTENDED_SIZE + self._xattr_size(node)
            tail = self._shape(number, node)
            offset = _align(offset, f.SLOT_SIZE)
            if self._layouts[number] == f.LAYOUT_INLINE:
                place = _place_tail(offset, head, tail)
                # Moving the inode so that its tail does not cross a block wastes the gap; a block
                # of its own wastes the rest of that block.
                if place is None or place - offset > f.BLOCK_SIZE - tail:
                    self._layouts[number] = f.LAYOUT_PLAIN
                    self._block_counts[number] += 1
                    tail = 0
                else:
                    offset = place
            self._nids[number] = offset // f.SLOT_SIZE
            if count := self._block_counts[number]:
                self._unions[number] = blocks
                blocks += count
            offset += head + tail
        first_block = _align(offset, f.BLOCK_SIZE) >> f.BLOCK_BITS
        for number, count in enumerate(self._block_counts):
            if count:
                self._unions[number] += first_block
        self._blocks = first_block + blocks
        if self._blocks >= 1 << 32:
            raise StoreError("the index would be larger than EROFS allows")

    def _shape(self, number: int, node: Node) -> int:
        """Choose the layout of an inode; returns the number of bytes that follow its xattrs."""
        if node.children is not None:
            size = _directory_size(node.children)
        elif stat.S_ISLNK(node.mode):
            if not 0 < len(node.target) <= f.SYMLINK_MAX or b"\0" in node.target:
                raise StoreError(f"a symlink to {show(node.target[:80])!r} cannot be kept")
            size = len(node.target)
        elif stat.S_ISREG(node.mode):
            if not isinstance(node.content, Inline):
                return self._shape_object(number, node)
            size = len(node.content.data)
        else:
            self._unions[number] = _encode_device(node.rdev) if _is_device(node.mode) else 0
            return 0
        self._sizes[number] = size
        self._block_counts[number], tail = divmod(size, f.BLOCK_SIZE)
        if tail:
            self._layouts[number] = f.LAYOUT_INLINE
        return tail

    def _shape_object(self, number: int, node: Node) -> int:
        self._sizes[number] = node.size
        self._layouts[number] = f.LAYOUT_CHUNKED
        bits = min(max(f.BLOCK_BITS, (node.size - 1).bit_length()), f.CHUNK_BITS_MAX)
        self._unions[number] = bits - f.BLOCK_BITS
        return 4 * self._chunk_count(number)

    def _chunk_count(self, number: int) -> int:
        bits = f.BLOCK_BITS + (self._unions[number] & f.CHUNK_BITS_MASK)
        return (self._sizes[number] + (1 << bits) - 1) >> bits

    def _xattr_size(self, node: Node) -> int:
        size = 0
        if _is_object(node):
            assert isinstance(node.content, Object)
            size = _object_size(len(node.content.path))
        if node.xattrs:
            size += sum(_entry_size(name, value) for name, value in node.xattrs.items())
            if not self._has_acl:
                self._has_acl = any(name in node.xattrs for name in _ACL_NAMES)
        return f.XATTR_HEADER_SIZE + size if size else 0

    # --- writing

    def write(self, file: BinaryIO) -> None:
        file.write(self._headers())
        offset = _FIRST_INODE
        for number, node in enumerate(self._nodes):
            place = self._nids[number] * f.SLOT_SIZE
            data = bytes(place - offset) + self._inode(number, node)
            file.write(data)
            offset += len(data)
        file.write(bytes(-offset % f.BLOCK_SIZE))
        for number, count in enumerate(self._block_counts):
            if count:
                data = self._data(number)[: count << f.BLOCK_BITS]
                file.write(data + bytes((count << f.BLOCK_BITS) - len(data)))

    def _headers(self) -> bytes:
        composefs = f.COMPOSEFS_HEADER.pack(
            f.COMPOSEFS_MAGIC,
            f.COMPOSEFS_VERSION,
            f.COMPOSEFS_HAS_ACL if self._has_acl else 0,
            0,
        )
        superblock = f.SUPERBLOCK.pack(
            *(f.MAGIC, 0, f.COMPAT_MTIME | f.COMPAT_XATTR_FILTER, f.BLOCK_BITS, 0),
            *(self._nids[0], len(self._nodes), 0, 0, self._blocks, 0, 0, b"", b""),
            *(f.INCOMPAT_CHUNKED, 0, 0, 0, 0, 0, 0, 0, 0),
        )
        return composefs + bytes(f.SUPERBLOCK_OFFSET - len(composefs)) + superblock

    def _inode(self, number: int, node: Node) -> bytes:
        xattrs = _pack_xattrs(node)
        count = (len(xattrs) - f.XATTR_HEADER_SIZE) // 4 + 1 if xattrs else 0
        if count > f.XATTR_COUNT_MAX:
            raise StoreError(f"{len(xattrs)} bytes of xattrs on one file do not fit into an index")
        layout, size, nlink = self._layouts[number], self._sizes[number], self._nlinks[number]
        seconds, nanoseconds = divmod(node.mtime_ns, 1_000_000_000)
        try:
            inode = f.INODE_EXTENDED.pack(
                *(1 | layout << 1, count, node.mode, 0, size, self._unions[number]),
                *(self._nids[number] & 0xFFFFFFFF, node.uid, node.gid),
                *(seconds, nanoseconds, nlink),
            )
        except struct.error:
            raise StoreError(
                f"a file of {size} bytes, owner {node.uid}:{node.gid}, time {seconds} s and"
                f" {nlink} links does not fit into an index"
            ) from None
        if layout == f.LAYOUT_INLINE:
            return inode + xattrs + self._data(number)[self._block_counts[number] << f.BLOCK_BITS :]
        if layout == f.LAYOUT_CHUNKED:
            return inode + xattrs + b"\xff" * (4 * self._chunk_count(number))
        return inode + xattrs

    def _data(self, number: int) -> bytes:
        node = self._nodes[number]
        if node.children is not None:
            return b"".join(self._directory_blocks(number, node.children))
        if stat.S_ISLNK(node.mode):
            return node.target
        assert isinstance(node.content, Inline)
        return node.content.data

    def _directory_blocks(self, number: int, children: dict[bytes, Node]) -> Iterator[bytes]:
        nids = self._nids
        remaining = self._sizes[number]
        for names in _group_names(children):
            length = min(f.BLOCK_SIZE, remaining)
            remaining -= length
            offset = f.DIRENT_SIZE * len(names)
            entries = bytearray()
            for name in names:
                child = children.get(name)
                if child is not None:
                    nid, kind = nids[child.number], _TYPES[stat.S_IFMT(child.mode)]
                else:  # . and ..
                    nid = nids[number if name == b"." else self._parents[number]]
                    kind = _TYPES[stat.S_IFDIR]
                entries += f.DIRENT.pack(nid, offset, kind)
                offset += len(name)
            block = bytes(entries) + b"".join(names)
            yield block + bytes(length - len(block))


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


def _is_object(node: Node) -> bool:
    return isinstance(node.content, Object) and stat.S_ISREG(node.mode)


def _entry_size(name: bytes, value: bytes) -> int:
    _, rest, _ = _split_xattr(name)
    return (f.XATTR_ENTRY_SIZE + len(rest) + len(value) + 3) & ~3


@functools.lru_cache(maxsize=16)
def _object_size(path_length: int) -> int:
    """Bytes of the two marks that send to an object."""
    redirect = _entry_size(marks.TRUSTED.redirect, bytes(1 + path_length))
    return _entry_size(marks.TRUSTED.metacopy, b"") + redirect


def _pack_xattrs(node: Node) -> bytes:
    packed = b""
    present = 0
    if _is_object(node):
        assert isinstance(node.content, Object)
        for name, value in (
            (marks.TRUSTED.metacopy, b""),
            (marks.TRUSTED.redirect, b"/" + node.content.path),
        ):
            packed += _pack_xattr(name, value)
            present |= _split_xattr(name)[2]
    if node.xattrs:
        for name, value in sorted(node.xattrs.items()):
            packed += _pack_xattr(name, value)
            present |= _split_xattr(name)[2]
    if not packed:
        return b""
    return f.XATTR_HEADER.pack(~present & 0xFFFFFFFF, 0) + packed


def _pack_xattr(name: bytes, value: bytes) -> bytes:
    index, rest, _ = _split_xattr(name)
    if len(value) > f.XATTR_VALUE_MAX:
        raise StoreError(f"the xattr {show(name)} of {len(value)} bytes does not fit")
    packed = f.XATTR_ENTRY.pack(len(rest), index, len(value)) + rest + value
    return packed + bytes(-len(packed) % 4)
