"""Writes an index: a `Tree` as an EROFS image in composefs's layout.

The same tree gives the same bytes. Content is never here but for small files: a larger one is a
file of holes with the marks that send the kernel's overlayfs (or us) to the object.

The image is laid out breadth first with each directory's names in order, so that the inodes of one
directory lie side by side: headers, then inodes with their xattrs and tails, then whole blocks of
directories. The tree is read once, into temporary files (`spool`) of what the image will have of it: it
may have any number of inodes, of which memory holds some 12 bytes each. A pass over those files says
where everything goes, another writes it.
"""

from __future__ import annotations

import itertools
import stat
import struct
from array import array
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from layerstore.errors import StoreError, show
from layerstore.index import format as f
from layerstore.index import packing
from layerstore.index.reader import Inline
from layerstore.index.tree import Node, NodeTree, Tree
from layerstore.spool import Spool

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
_OUTPUT_MAX = 1 << 20
_INODES_AT_ONCE = 1 << 13

_HEAD = struct.Struct("<HBIIIqIQII")
"""Of an inode on its way: mode, layout (chunked or not), length of the xattrs, uid, gid, mtime in
seconds, its nanoseconds, size, device or chunk bits, length of the data after the xattrs."""
_NAME = struct.Struct("<QBB")
"""Of an entry on its way: number of its inode, its type, length of the name that follows."""


def write_index(tree: Tree | Node, file: BinaryIO, scratch: bytes | None = None) -> None:
    """Write a tree to `file`, from its beginning.

    Args:
        tree: it, or the directory that a tree of nodes is below.
        file: seekable.
        scratch: where temporary files are made; None: where `tempfile` does.

    Raises:
        StoreError: something in the tree has no place in an index, such as 300 KB of xattrs.
        OSError: from writing.
    """
    if isinstance(tree, Node):
        tree = NodeTree(tree)
    with Spool(scratch) as heads, Spool(scratch) as bodies, Spool(scratch) as names:
        _Writer(heads, bodies, names).write(tree, file)


class _Placed(NamedTuple):
    """An inode that has its place. `blocks`: of data outside the inode; `tail`: bytes of it, or of
    chunks, behind the xattrs."""

    head: tuple[int, ...]
    offset: int
    layout: int
    size: int
    blocks: int
    tail: int


class _Writer:
    """One image. Inodes have numbers, in the order in which they are laid out; directories also have
    positions, in the same order."""

    def __init__(self, heads: Spool, bodies: Spool, names: Spool) -> None:
        self._heads = heads
        self._bodies = bodies
        self._names = names
        self._has_acl = False
        self._nlinks = array("L")
        self._nids = array("Q")
        self._directories = array("L")  # the number of each
        self._parents = array("L")  # that of its parent
        self._counts = array("L")  # of the entries of each
        self._sizes = array("Q")  # of each in bytes
        self._end = 0  # of the inodes

    def write(self, tree: Tree, file: BinaryIO) -> None:
        self._collect(tree)
        blocks = 0
        for placed in self._places():
            self._nids.append(placed.offset // f.SLOT_SIZE)
            blocks += placed.blocks
        first_block = _align(self._end, f.BLOCK_SIZE) >> f.BLOCK_BITS
        if first_block + blocks >= 1 << 32:
            raise StoreError("the index would be larger than EROFS allows")
        inodes = _Output(file, 0)
        inodes.put(self._headers(first_block + blocks))
        self._emit(inodes, _Output(file, first_block << f.BLOCK_BITS), first_block)
        inodes.put(bytes((first_block << f.BLOCK_BITS) - self._end))
        inodes.flush()

    # --- the tree

    def _collect(self, tree: Tree) -> None:
        root = tree.root
        if not stat.S_ISDIR(root.mode):
            raise StoreError("the root of an index must be a directory")
        self._add(root, 0)
        linked: dict[int, int] = {}
        for position, listing in enumerate(tree.listings()):
            directory = self._directories[position]
            names = _Names(self._names, directory, self._parents[position])
            for name, node, key in listing:
                number = linked.get(key) if key is not None else None
                if number is None:
                    number = self._add(node, directory)
                    if key is not None:
                        linked[key] = number
                elif stat.S_ISDIR(node.mode):
                    raise StoreError(f"the directory {show(name)} is in the tree twice")
                else:
                    self._nlinks[number] += 1
                names.put(name, number, node.mode)
            names.finish()
            self._counts.append(names.count)
            self._sizes.append(names.size)

    def _add(self, node: Node, parent: int) -> int:
        """Take an inode; returns its number."""
        number = len(self._nlinks)
        mode = node.mode
        size = union = 0
        layout = f.LAYOUT_PLAIN
        data = b""
        kind = stat.S_IFMT(mode)
        if kind == stat.S_IFREG:
            if isinstance(node.content, Inline):
                data = node.content.data
                size = len(data)
            else:
                size, layout = node.size, f.LAYOUT_CHUNKED
                bits = min(max(f.BLOCK_BITS, (size - 1).bit_length()), f.CHUNK_BITS_MAX)
                union = bits - f.BLOCK_BITS
        elif kind == stat.S_IFLNK:
            data = node.target
            if not 0 < len(data) <= f.SYMLINK_MAX or b"\0" in data:
                raise StoreError(f"a symlink to {show(data[:80])!r} cannot be kept")
            size = len(data)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            union = packing.encode_device(node.rdev)
        nlink = 1
        if kind == stat.S_IFDIR:
            nlink = 2
            self._directories.append(number)
            self._parents.append(parent)
            if number:
                self._nlinks[parent] += 1
        xattrs = packing.pack_xattrs(node)
        self._has_acl = self._has_acl or packing.has_acl(node)
        seconds, nanoseconds = divmod(node.mtime_ns, 1_000_000_000)
        try:
            self._heads.write(
                _HEAD.pack(
                    *(mode, layout, len(xattrs), node.uid, node.gid, seconds, nanoseconds),
                    *(size, union, len(data)),
                )
            )
        except struct.error:
            raise StoreError(
                f"a file of {size} bytes, owner {node.uid}:{node.gid} and time {seconds} s does not"
                " fit into an index"
            ) from None
        self._bodies.write(xattrs + data)
        self._nlinks.append(nlink)
        return number

    # --- layout

    def _places(self) -> Iterator[_Placed]:
        """The place of each inode; once they are all there, `_end` is where the last one ends."""
        offset = _FIRST_INODE
        sizes = iter(self._sizes)
        file = self._heads.rewound()
        while chunk := file.read(_HEAD.size * _INODES_AT_ONCE):
            for head in _HEAD.iter_unpack(chunk):
                mode, layout, xattrs, size, union = head[0], head[1], head[2], head[7], head[8]
                offset = _align(offset, f.SLOT_SIZE)
                length = f.INODE_EXTENDED_SIZE + xattrs
                blocks = tail = 0
                if layout == f.LAYOUT_CHUNKED:
                    tail = 4 * _chunk_count(size, union)
                else:
                    if stat.S_ISDIR(mode):
                        size = next(sizes)
                    blocks, tail = divmod(size, f.BLOCK_SIZE)
                if tail and layout != f.LAYOUT_CHUNKED:
                    place = _place_tail(offset, length, tail)
                    # Moving the inode so that its tail does not cross a block wastes the gap; a
                    # block of its own wastes the rest of that block.
                    if place is None or place - offset > f.BLOCK_SIZE - tail:
                        blocks, tail = blocks + 1, 0
                    else:
                        layout, offset = f.LAYOUT_INLINE, place
                yield _Placed(head, offset, layout, size, blocks, tail)
                offset += length + tail
        self._end = offset

    # --- writing

    def _emit(self, inodes: _Output, blocks: _Output, next_block: int) -> None:
        bodies, names = self._bodies.rewound(), self._names.rewound()
        positions = itertools.count()
        end = _FIRST_INODE
        for number, (head, offset, layout, size, count, tail) in enumerate(self._places()):
            mode, _, xattrs_size, uid, gid, seconds, nanoseconds, _, union, data_size = head
            xattrs = bodies.read(xattrs_size)
            data = bodies.read(data_size)
            if count:
                union = next_block
                next_block += count
            inode = f.INODE_EXTENDED.pack(
                *(1 | layout << 1, packing.xattr_count(xattrs), mode, 0, size, union),
                *(self._nids[number] & 0xFFFFFFFF, uid, gid),
                *(seconds, nanoseconds, self._nlinks[number]),
            )
            if layout == f.LAYOUT_CHUNKED:
                data = b"\xff" * tail
            elif stat.S_ISDIR(mode):
                data = self._directory(next(positions), names, blocks, count)
            elif count:
                full = count << f.BLOCK_BITS
                blocks.put(data[:full] + bytes(max(full - len(data), 0)))
                data = data[full:]
            inodes.put(bytes(offset - end) + inode + xattrs + data)
            end = offset + len(inode) + len(xattrs) + len(data)
        blocks.flush()

    def _directory(self, position: int, names: BinaryIO, blocks: _Output, count: int) -> bytes:
        """Put the first `count` blocks of a directory where blocks go; returns what is left of it."""
        rest = b""
        for number, block in enumerate(self._directory_blocks(names, self._counts[position])):
            if number < count:
                blocks.put(block + bytes(f.BLOCK_SIZE - len(block)))
            else:
                rest = block
        return rest

    def _directory_blocks(self, names: BinaryIO, count: int) -> Iterator[bytes]:
        """The blocks of the directory whose entries come next, without what pads them."""
        group: list[tuple[int, int, bytes]] = []
        used = 0
        for _ in range(count):
            number, kind, length = _NAME.unpack(names.read(_NAME.size))
            name = names.read(length)
            size = f.DIRENT_SIZE + length
            if used + size > f.BLOCK_SIZE:
                yield self._block(group)
                group, used = [], 0
            group.append((number, kind, name))
            used += size
        yield self._block(group)

    def _block(self, group: list[tuple[int, int, bytes]]) -> bytes:
        offset = f.DIRENT_SIZE * len(group)
        entries = bytearray()
        for number, kind, name in group:
            entries += f.DIRENT.pack(self._nids[number], offset, kind)
            offset += len(name)
        return bytes(entries) + b"".join([name for _, _, name in group])

    def _headers(self, blocks: int) -> bytes:
        composefs = f.COMPOSEFS_HEADER.pack(
            f.COMPOSEFS_MAGIC,
            f.COMPOSEFS_VERSION,
            f.COMPOSEFS_HAS_ACL if self._has_acl else 0,
            0,
        )
        superblock = f.SUPERBLOCK.pack(
            *(f.MAGIC, 0, f.COMPAT_MTIME | f.COMPAT_XATTR_FILTER, f.BLOCK_BITS, 0),
            *(self._nids[0], len(self._nids), 0, 0, blocks, 0, 0, b"", b""),
            *(f.INCOMPAT_CHUNKED, 0, 0, 0, 0, 0, 0, 0, 0),
        )
        return composefs + bytes(f.SUPERBLOCK_OFFSET - len(composefs)) + superblock


class _Output:
    """A part of the image that is written from front to back, beside another."""

    def __init__(self, file: BinaryIO, offset: int) -> None:
        self._file = file
        self._offset = offset
        self._waiting = bytearray()

    def put(self, data: bytes) -> None:
        self._waiting += data
        if len(self._waiting) >= _OUTPUT_MAX:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            self._file.seek(self._offset)
            self._file.write(self._waiting)
            self._offset += len(self._waiting)
            self._waiting = bytearray()


class _Names:
    """The entries of one directory on their way, `.` and `..` among them. `size`: of its blocks."""

    def __init__(self, spool: Spool, directory: int, parent: int) -> None:
        self._spool = spool
        self._dots = [(b"..", parent), (b".", directory)]
        self._blocks = 0
        self._used = 0
        self.count = 0

    def put(self, name: bytes, number: int, mode: int) -> None:
        while self._dots and self._dots[-1][0] <= name:
            if self._dots[-1][0] == name:
                _refuse(name)
            self._dot()
        if not 0 < len(name) <= f.NAME_MAX or b"/" in name or b"\0" in name:
            _refuse(name)
        self._write(name, number, _TYPES[stat.S_IFMT(mode)])

    def finish(self) -> None:
        while self._dots:
            self._dot()

    @property
    def size(self) -> int:
        return (self._blocks << f.BLOCK_BITS) + self._used

    def _dot(self) -> None:
        name, number = self._dots.pop()
        self._write(name, number, _TYPES[stat.S_IFDIR])

    def _write(self, name: bytes, number: int, kind: int) -> None:
        self._spool.write(_NAME.pack(number, kind, len(name)) + name)
        self.count += 1
        size = f.DIRENT_SIZE + len(name)
        if self._used + size > f.BLOCK_SIZE:
            self._blocks += 1
            self._used = 0
        self._used += size


def _refuse(name: bytes) -> None:
    raise StoreError(f"{show(name[:300])!r} is not a file name an index can hold")


# --- placement


def _align(offset: int, unit: int) -> int:
    return (offset + unit - 1) // unit * unit


def _place_tail(offset: int, head: int, tail: int) -> int | None:
    """The first place from `offset`, in steps of a slot, for an inode whose `tail` bytes after `head`
    must not cross a block; None if there is none."""
    used = (offset + head) % f.BLOCK_SIZE
    if used + tail <= f.BLOCK_SIZE:
        return offset
    place = offset + _align(f.BLOCK_SIZE - used, f.SLOT_SIZE)
    return place if (place + head) % f.BLOCK_SIZE + tail <= f.BLOCK_SIZE else None


def _chunk_count(size: int, union: int) -> int:
    bits = f.BLOCK_BITS + (union & f.CHUNK_BITS_MASK)
    return (size + (1 << bits) - 1) >> bits
