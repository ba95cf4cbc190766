"""`Index`: an EROFS index, mapped and read in place.

Nothing in the file is trusted: whatever its bytes are, the answer is a value or `IndexCorrupt`.
Plain and synchronous, no state but the mapping: any thread may call it. A lookup is a binary search
over the blocks of a directory and then inside one, so it costs the same in any directory.

An index that is open is in use: `Index` holds a shared flock(2) on the file, and who wants to
delete it tries for an exclusive one first.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from layerstore import marks
from layerstore.errors import IndexCorrupt, StoreError, show
from layerstore.index import format as f

_DT = (0, 8, 4, 2, 6, 1, 12, 10)  # by EROFS type: unknown, file, dir, chr, blk, fifo, sock, link
_HEX = frozenset(b"0123456789abcdef")
_XATTR_PREFIX = {index: prefix for prefix, index in f.XATTR_PREFIXES}

_unpack_extended = f.INODE_EXTENDED.unpack_from
_unpack_compact = f.INODE_COMPACT.unpack_from
_unpack_dirent = f.DIRENT.unpack_from
_unpack_xattr = f.XATTR_ENTRY.unpack_from

_KINDS = frozenset({1, 2, 4, 6, 8, 10, 12})
"""S_IFMT of a mode without its low bits: what there is of inodes."""


class Stat(NamedTuple):
    """What an index knows of an inode. `ino` is the nid, as the kernel's EROFS shows it; times in
    nanoseconds."""

    mode: int
    nlink: int
    size: int
    uid: int
    gid: int
    rdev: int
    mtime_ns: int
    ino: int


class Inline(NamedTuple):
    """Content that is kept in the index itself."""

    data: bytes


class Object(NamedTuple):
    """Content that is kept as an object; `path` below the objects directory, `ab/cdef...`."""

    path: bytes

    @property
    def digest(self) -> str:
        """The object's name as OCI writes digests."""
        return "sha256:" + (self.path[:2] + self.path[3:]).decode()


class Sparse(NamedTuple):
    """Content that is nothing but a hole of `size` bytes."""

    size: int


Content = Inline | Object | Sparse


class _Inode(NamedTuple):
    offset: int
    layout: int
    mode: int
    nlink: int
    size: int
    union: int
    uid: int
    gid: int
    mtime_ns: int
    body: int  # offset of the xattrs
    tail: int  # offset after the xattrs: inline data, chunk array


class Index:
    """An EROFS index.

    Args:
        path: the file.

    Raises:
        IndexCorrupt: the file is no EROFS image, or one with features no index has.
        OSError: it cannot be opened.
    """

    def __init__(self, path: bytes | str) -> None:
        self.path = os.fsencode(path)
        self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._claim()
            self._size = os.fstat(self._fd).st_size
            if self._size < f.SUPERBLOCK_OFFSET + f.SUPERBLOCK_SIZE:
                raise self._corrupt(self._size, "an EROFS index, the file is too short for one")
            self._map = mmap.mmap(self._fd, self._size, mmap.MAP_SHARED, mmap.PROT_READ)
        except BaseException:
            os.close(self._fd)
            raise
        try:
            self._read_superblock()
        except BaseException:
            self.close()
            raise

    def _claim(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            gone = os.fstat(self._fd).st_nlink == 0
        except BlockingIOError:
            gone = True
        except OSError:  # a filesystem without locks: nobody can keep it from being removed
            gone = False
        if gone:
            raise StoreError(f"{show(self.path)}: the image is being removed: import it again")

    def _read_superblock(self) -> None:
        fields = f.SUPERBLOCK.unpack_from(self._map, f.SUPERBLOCK_OFFSET)
        (magic, _, compatible, block_bits, _, root, inodes, time, time_ns) = fields[:9]
        (blocks, meta, xattrs, _, _, incompatible, _, devices, _, dir_bits) = fields[9:19]
        prefixes = fields[19]
        if magic != f.MAGIC:
            raise self._corrupt(
                f.SUPERBLOCK_OFFSET, f"the EROFS magic {f.MAGIC:#x}, found {magic:#x}"
            )
        if block_bits != f.BLOCK_BITS or dir_bits != 0:
            raise self._corrupt(
                f.SUPERBLOCK_OFFSET + 12, f"blocks of 4096 bytes, found 2^{block_bits}"
            )
        if incompatible & ~f.INCOMPAT_CHUNKED or devices or prefixes:
            raise self._corrupt(
                f.SUPERBLOCK_OFFSET + 80,
                f"an uncompressed image on one device, found the features {incompatible:#x}",
            )
        if blocks << f.BLOCK_BITS > self._size:
            raise self._corrupt(
                self._size, f"{blocks} blocks, but the file ends here: it was cut short"
            )
        self.inodes: int = inodes
        self._compatible: int = compatible
        self._time_ns: int = time * 1_000_000_000 + time_ns
        self._meta: int = meta << f.BLOCK_BITS
        self._xattrs: int = xattrs << f.BLOCK_BITS
        self.root_nid: int = root
        if not stat.S_ISDIR(self._inode(root).mode):
            raise self._corrupt(self._meta + root * f.SLOT_SIZE, "a directory as the root")

    @property
    def size(self) -> int:
        """Of the file in bytes."""
        return self._size

    def release(self) -> None:
        """Give back the memory that what was read takes here; the page cache keeps it."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def fileno(self) -> int:
        """The descriptor of the index, open for reading; stays the index's."""
        return self._fd

    def close(self) -> None:
        """Unmap the file and give up the claim on it. Nothing may be asked afterwards."""
        if self._fd >= 0:
            self._map.close()
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- inodes

    def stat(self, nid: int) -> Stat:
        """The attributes of an inode.

        Raises:
            IndexCorrupt: there is no such inode.
        """
        inode = self._inode(nid)
        mode = inode.mode
        device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        return Stat(
            mode,
            inode.nlink,
            inode.size,
            inode.uid,
            inode.gid,
            _decode_device(inode.union) if device else 0,
            inode.mtime_ns,
            nid,
        )

    def readlink(self, nid: int) -> bytes:
        """The target of a symlink.

        Raises:
            IndexCorrupt: not a symlink, or one with a target no symlink can have.
        """
        inode = self._inode(nid)
        if not stat.S_ISLNK(inode.mode):
            raise self._corrupt(inode.offset + 4, f"a symlink, found mode {inode.mode:#o}")
        if not 0 < inode.size <= f.SYMLINK_MAX:
            raise self._corrupt(
                inode.offset + 8, f"a target of 1 to {f.SYMLINK_MAX} bytes, found {inode.size}"
            )
        target = self._data(inode)
        if b"\0" in target:
            raise self._corrupt(inode.tail, "a target without NUL")
        return target

    def content(self, nid: int) -> Content:
        """Where the content of a regular file is.

        Raises:
            IndexCorrupt: not a regular file, a redirect that names no object, content on blocks.
        """
        inode = self._inode(nid)
        if not stat.S_ISREG(inode.mode):
            raise self._corrupt(inode.offset + 4, f"a regular file, found mode {inode.mode:#o}")
        if inode.layout != f.LAYOUT_CHUNKED:
            return Inline(self._data(inode))
        found = self._xattrs_of(inode)
        redirect = found.get(marks.TRUSTED.redirect)
        if redirect is not None and marks.TRUSTED.metacopy in found:
            return Object(self._object_path(inode, redirect))
        self._check_holes(inode)
        return Sparse(inode.size)

    def _object_path(self, inode: _Inode, redirect: bytes) -> bytes:
        if (
            len(redirect) == 66
            and redirect[0] == redirect[3] == 0x2F
            and _HEX.issuperset(redirect[1:3])
            and _HEX.issuperset(redirect[4:])
        ):
            return redirect[1:]
        raise self._corrupt(
            inode.body, f"a redirect to an object, /ab/cdef..., found {redirect[:80]!r}"
        )

    def _check_holes(self, inode: _Inode) -> None:
        chunk_bits = f.BLOCK_BITS + (inode.union & f.CHUNK_BITS_MASK)
        count = (inode.size + (1 << chunk_bits) - 1) >> chunk_bits
        width = 8 if inode.union & f.CHUNK_INDEXES else 4
        start = (inode.tail + width - 1) // width * width
        self._need(start, count * width, "the chunks of a file")
        # An 8-byte chunk is u16 advise, u16 device, u32 block.
        for offset in range(start, start + count * width, width):
            if self._map[offset + width - 4 : offset + width] != b"\xff\xff\xff\xff":
                raise self._corrupt(offset, "a hole: content belongs in objects")

    def xattrs(self, nid: int) -> dict[bytes, bytes]:
        """All extended attributes of an inode as they are stored, overlay marks included.

        Raises:
            IndexCorrupt: they do not fit where they should be.
        """
        return self._xattrs_of(self._inode(nid))

    def _xattrs_of(self, inode: _Inode) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        offset, end = inode.body, inode.tail
        if offset == end:
            return found
        shared = self._map[offset + 4]
        offset += f.XATTR_HEADER_SIZE
        if offset + 4 * shared > end:
            raise self._corrupt(offset, f"{shared} shared xattrs, found room for fewer")
        for at in range(offset, offset + 4 * shared, 4):
            start = self._xattrs + 4 * int.from_bytes(self._map[at : at + 4], "little")
            self._read_xattr(start, self._size, found)
        offset += 4 * shared
        while offset + f.XATTR_ENTRY_SIZE <= end:
            offset = self._read_xattr(offset, end, found)
        return found

    def _read_xattr(self, offset: int, end: int, found: dict[bytes, bytes]) -> int:
        """Read the entry at `offset` into `found`; returns where the next one starts."""
        if offset + f.XATTR_ENTRY_SIZE > end:
            raise self._corrupt(offset, "an xattr entry")
        name_length, index, value_length = _unpack_xattr(self._map, offset)
        value_at = offset + f.XATTR_ENTRY_SIZE + name_length
        after: int = value_at + value_length
        prefix = _XATTR_PREFIX.get(index)
        if prefix is None or after > end:
            raise self._corrupt(offset, f"an xattr, found prefix {index} and {value_length} bytes")
        name = prefix + self._map[offset + f.XATTR_ENTRY_SIZE : value_at]
        if len(name) > f.NAME_MAX or b"\0" in name:
            raise self._corrupt(offset, f"the name of an xattr, found {name[:80]!r}")
        # Of two with one name the first counts, as for the kernel.
        found.setdefault(name, self._map[value_at:after])
        return (after + 3) & ~3

    def _inode(self, nid: int) -> _Inode:
        offset = self._meta + nid * f.SLOT_SIZE
        if not 0 <= offset <= self._size - f.INODE_COMPACT_SIZE:
            raise self._corrupt(offset, f"inode {nid} inside the file")
        if self._map[offset] & 1:
            if offset > self._size - f.INODE_EXTENDED_SIZE:
                raise self._corrupt(offset, f"inode {nid} inside the file")
            (form, count, mode, _, size, union, _, uid, gid, mtime, mtime_ns, nlink) = (
                _unpack_extended(self._map, offset)
            )
            body = offset + f.INODE_EXTENDED_SIZE
            time_ns = mtime * 1_000_000_000 + mtime_ns
        else:
            form, count, mode, nlink, size, _, union, _, uid, gid, _ = _unpack_compact(
                self._map, offset
            )
            body = offset + f.INODE_COMPACT_SIZE
            time_ns = self._time_ns
        layout = form >> 1 & 7
        if form >> 4 or layout not in (f.LAYOUT_PLAIN, f.LAYOUT_INLINE, f.LAYOUT_CHUNKED):
            raise self._corrupt(offset, f"an inode, found the format {form:#x}")
        if mode >> 12 not in _KINDS:
            raise self._corrupt(offset, f"an inode, found the mode {mode:#o}")
        tail = body + (f.XATTR_HEADER_SIZE + 4 * (count - 1) if count else 0)
        if tail > self._size:
            raise self._corrupt(body, f"the xattrs of inode {nid} inside the file")
        return _Inode(offset, layout, mode, nlink, size, union, uid, gid, time_ns, body, tail)

    def _data(self, inode: _Inode) -> bytes:
        """The whole content of an inode whose data is in this file."""
        if inode.layout == f.LAYOUT_CHUNKED:
            raise self._corrupt(inode.offset, "data in the index, found chunks")
        full = inode.size
        if inode.layout == f.LAYOUT_INLINE:
            full = inode.size >> f.BLOCK_BITS << f.BLOCK_BITS
        data = b""
        if full:
            start = inode.union << f.BLOCK_BITS
            self._need(start, full, "the data of an inode")
            data = self._map[start : start + full]
        rest = inode.size - full
        if rest:
            self._need(inode.tail, rest, "the data of an inode")
            data += self._map[inode.tail : inode.tail + rest]
        return data

    # --- directories

    def lookup(self, nid: int, name: bytes) -> int | None:
        """The nid of the entry `name` of the directory `nid`, None if there is no such entry.

        Raises:
            IndexCorrupt: not a directory, or a broken one.
        """
        if name in (b".", b".."):
            return None
        inode = self._directory(nid)
        # The last block whose first name is not above `name`.
        low, high = 0, self._blocks(inode)
        while high - low > 1:
            middle = (low + high) >> 1
            start, end = self._block(inode, middle)
            if self._name(start, end, self._count(start, end), 0) <= name:
                low = middle
            else:
                high = middle
        start, end = self._block(inode, low)
        return self._search(start, end, self._count(start, end), name)

    def _search(self, start: int, end: int, count: int, name: bytes) -> int | None:
        """`lookup` inside one block. Spelled out, since half of all time here is spent in calls."""
        data = self._map[start:end]
        names = count * f.DIRENT_SIZE
        first, last = 0, count
        while first < last:
            middle = (first + last) >> 1
            at = middle * f.DIRENT_SIZE
            begin = data[at + 8] | data[at + 9] << 8
            if middle + 1 < count:
                found = data[begin : data[at + 20] | data[at + 21] << 8]
            else:
                found = data[begin:].split(b"\0", 1)[0]
            if begin < names or not found:
                raise self._corrupt(start + at + 8, "the name of an entry")
            if found == name:
                return int.from_bytes(data[at : at + 8], "little")
            if found < name:
                first = middle + 1
            else:
                last = middle
        return None

    def entries(self, nid: int) -> Iterator[tuple[bytes, int, int]]:
        """The entries of a directory in byte order, without `.` and `..`: name, nid, DT_* type.

        Raises:
            IndexCorrupt: not a directory, or a broken one, names out of order included.
        """
        inode = self._directory(nid)
        data = self._map
        last = b""
        for number in range(self._blocks(inode)):
            start, end = self._block(inode, number)
            count = self._count(start, end)
            for position in range(count):
                name = self._name(start, end, count, position)
                if name <= last:
                    raise self._corrupt(start, f"names in order, found {name!r} after {last!r}")
                last = name
                if name in (b".", b".."):
                    continue
                child, _, kind = _unpack_dirent(data, start + f.DIRENT_SIZE * position)
                if not 1 <= kind <= 7 or b"/" in name:
                    raise self._corrupt(start, f"an entry, found {name!r} of type {kind}")
                yield name, child, _DT[kind]

    def _directory(self, nid: int) -> _Inode:
        inode = self._inode(nid)
        if not stat.S_ISDIR(inode.mode):
            raise self._corrupt(inode.offset + 4, f"a directory, found mode {inode.mode:#o}")
        if inode.layout == f.LAYOUT_CHUNKED:
            raise self._corrupt(inode.offset, "a directory, found chunks")
        if not 0 < inode.size <= self._size:
            raise self._corrupt(inode.offset + 8, f"a directory, found {inode.size} bytes")
        return inode

    def _blocks(self, inode: _Inode) -> int:
        return (inode.size + f.BLOCK_SIZE - 1) >> f.BLOCK_BITS

    def _block(self, inode: _Inode, number: int) -> tuple[int, int]:
        """Where block `number` of a directory starts and ends in the file."""
        length = min(f.BLOCK_SIZE, inode.size - (number << f.BLOCK_BITS))
        if inode.layout == f.LAYOUT_INLINE and length < f.BLOCK_SIZE:
            start = inode.tail
        else:
            start = (inode.union + number) << f.BLOCK_BITS
        self._need(start, length, "a block of a directory")
        return start, start + length

    def _count(self, start: int, end: int) -> int:
        """The number of entries in a directory block."""
        if end - start < f.DIRENT_SIZE:
            raise self._corrupt(start, f"a directory block, found {end - start} bytes")
        first = int.from_bytes(self._map[start + 8 : start + 10], "little")
        count, rest = divmod(first, f.DIRENT_SIZE)
        if rest or not count or start + first > end:
            raise self._corrupt(start + 8, f"the offset of a first name, found {first}")
        return count

    def _name(self, start: int, end: int, count: int, position: int) -> bytes:
        data = self._map
        at = start + f.DIRENT_SIZE * position + 8
        low = data[at] | data[at + 1] << 8
        if position + 1 < count:
            high = data[at + 12] | data[at + 13] << 8
            name = data[start + low : start + high]
            if start + high > end:
                name = b""
        else:
            name = data[start + low : end].split(b"\0", 1)[0]
        if low < count * f.DIRENT_SIZE or not 0 < len(name) <= f.NAME_MAX or b"\0" in name:
            raise self._corrupt(at, f"the name of an entry, found {name[:80]!r}")
        return name

    # --- errors

    def _need(self, start: int, length: int, what: str) -> None:
        if start + length > self._size:
            raise self._corrupt(start, f"{what}, {length} bytes inside the file")

    def _corrupt(self, offset: int, expected: str) -> IndexCorrupt:
        return IndexCorrupt(self.path, offset, f"expected {expected}")


def _decode_device(value: int) -> int:
    """The st_rdev of a device number as EROFS stores it (the kernel's new_encode_dev)."""
    return os.makedev(value >> 8 & 0xFFF, value & 0xFF | value >> 12 & 0xFFF00)
