"""Reads a tar stream entry by entry, from front to back, in constant memory.

POSIX ustar and PAX (pax(1), "pax Interchange Format"), GNU (tar.info, "Basic Tar Format": long
names, base-256 numbers, both kinds of sparse files) and v7. Names are bytes as they stand in the
archive. Every error names the offset in the uncompressed stream.

Global PAX headers are read over, as container engines do: what git archive writes there is a
comment, and applying one to every later entry would make the tree differ from theirs.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterator
from typing import Protocol, cast

from layerstore.errors import SourceInvalid, show
from layerstore.oci import tar_fields as fields

BLOCK = 512
CHUNK_SIZE = 1 << 20
META_MAX = 8 << 20
"""Limit for what describes one entry (PAX records, long names, sparse maps), in bytes. Linux itself
allows 64 KiB of xattrs."""
XATTRS_MAX = 256 << 10
"""Limit for the xattrs of one entry in bytes; an index holds little more."""

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12s")
_ZERO_BLOCK = bytes(BLOCK)
_REGULAR = b"0\x007"
_KINDS = {
    b"2": stat.S_IFLNK,
    b"3": stat.S_IFCHR,
    b"4": stat.S_IFBLK,
    b"5": stat.S_IFDIR,
    b"6": stat.S_IFIFO,
}
_SCHILY = b"SCHILY.xattr."
_LIBARCHIVE = b"LIBARCHIVE.xattr."


class Source(Protocol):
    """Where the bytes come from."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes, fewer or none only at the end."""
        ...


class SeekableSource(Source, Protocol):
    """A source that passes over bytes without reading them."""

    def skip(self, size: int, /) -> None:
        """Go on `size` bytes later, perhaps behind the end."""
        ...


class TarEntry:
    """One entry.

    `name`: as in the archive. `kind`: S_IF* of what it is; a hard link is S_IFREG with `hard_link`.
    `link`: target of a symlink or hard link. `size`: of the content, holes included, in bytes.
    `offset`: of the entry in the stream. `segments`: where the data of a sparse file goes, as
    (offset, length); None if it is not sparse.
    """

    __slots__ = (
        "gid",
        "hard_link",
        "kind",
        "link",
        "mode",
        "mtime_ns",
        "name",
        "offset",
        "rdev_major",
        "rdev_minor",
        "segments",
        "size",
        "stored",
        "uid",
        "xattrs",
    )

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.name = b""
        self.link = b""
        self.kind = stat.S_IFREG
        self.hard_link = False
        self.mode = 0
        self.uid = self.gid = 0
        self.size = 0
        self.stored = 0
        self.mtime_ns = 0
        self.rdev_major = self.rdev_minor = 0
        self.segments: list[tuple[int, int]] | None = None
        self.xattrs: dict[bytes, bytes] = {}


class TarReader:
    """Iterates over the entries of a stream; `data` gives the content of the entry just returned.

    Args:
        source: the uncompressed stream. If it is a `SeekableSource`, content nobody asks for is not
            read, and who uses it compares `data_offset` and sizes with the length of the file.
        label: what it is called in messages.
        needs_end: refuse a stream that ends without the two blocks of zeros. Where a digest covers
            the stream they prove nothing, and some archivers leave them out.
        record: called with everything in the stream, in order, but for what `data` and `segments`
            give.
    """

    def __init__(
        self,
        source: Source,
        label: str,
        *,
        needs_end: bool = True,
        record: Callable[[bytes], None] | None = None,
    ) -> None:
        self._source = source
        self._record = record
        seekable = record is None and hasattr(source, "skip")
        self._seekable = cast(SeekableSource, source) if seekable else None
        self._label = label
        self._needs_end = needs_end
        self._position = 0
        self._header_at = 0
        self._remaining = 0  # bytes of the current entry not read yet, padding apart
        self._padding = 0

    def __iter__(self) -> Iterator[TarEntry]:
        while True:
            self._skip()
            try:
                entry = self._next_entry()
            except fields.FieldInvalid as error:
                raise self._bad(self._header_at, str(error)) from None
            if entry is None:
                return
            yield entry

    def data(self, entry: TarEntry) -> Iterator[bytes]:
        """The stored bytes of `entry`, the one returned last, in pieces of at most 1 MiB."""
        while self._remaining:
            yield self._read_data(entry, min(self._remaining, CHUNK_SIZE))

    @property
    def data_offset(self) -> int:
        """Where in the stream the content of the entry just returned starts."""
        return self._position

    def segments(self, entry: TarEntry) -> Iterator[tuple[int, Iterator[bytes]]]:
        """The runs of data of a sparse `entry`, to be consumed in order."""
        for start, length in entry.segments or ():
            yield start, self._segment(entry, length)

    def _segment(self, entry: TarEntry, length: int) -> Iterator[bytes]:
        while length:
            piece = self._read_data(entry, min(length, CHUNK_SIZE))
            length -= len(piece)
            yield piece

    def _read_data(self, entry: TarEntry, size: int) -> bytes:
        piece = self._take(size)
        if len(piece) < size:
            raise self._bad(
                entry.offset,
                f"{show(entry.name)}: the archive ends {self._remaining - len(piece)} bytes"
                f" before the file does: it was cut short",
            )
        self._remaining -= size
        return piece

    # --- headers

    def _next_entry(self) -> TarEntry | None:
        entry = TarEntry(self._position)
        pax: dict[bytes, bytes] = {}
        long_name = long_link = None
        while True:
            offset = self._header_at = self._position
            header = self._read(BLOCK)
            if header == _ZERO_BLOCK or not header:
                if offset != entry.offset:
                    if not header:
                        raise self._bad(
                            offset, "the archive ends inside a header: it was cut short"
                        )
                    raise self._bad(
                        offset, "the entry that belongs to an extended header is missing"
                    )
                self._end(offset, header)
                return None
            if len(header) < BLOCK:
                raise self._bad(offset, "the archive ends inside a header: it was cut short")
            if not fields.sum_is_right(header):
                raise self._bad(offset, "this is no tar header, or a damaged one (checksum)")
            kind = header[156:157]
            if kind in b"xXgLK":
                body = self._meta(header, offset)
                if kind in b"xX":
                    pax = fields.parse_pax(body)
                elif kind == b"g":
                    fields.parse_pax(body)
                elif kind == b"L":
                    long_name = body.split(b"\0", 1)[0]
                else:
                    long_link = body.split(b"\0", 1)[0]
                continue
            self._fill(entry, header, offset)
            if long_name is not None:
                entry.name = long_name
            if long_link is not None:
                entry.link = long_link
            self._apply_pax(entry, pax, offset)
            self._set_kind(entry, header, pax, offset)
            if kind == b"V":  # a volume label is no file
                self._begin_data(entry)
                self._skip()
                entry, pax, long_name, long_link = TarEntry(self._position), {}, None, None
                continue
            self._begin_data(entry)
            self._prepare_sparse(entry, header, pax, offset)
            return entry

    def _end(self, offset: int, header: bytes) -> None:
        if not header and self._needs_end:
            raise self._bad(offset, "the archive ends without an end mark: it was cut short")
        if self._read(BLOCK) not in (_ZERO_BLOCK, b""):
            raise self._bad(offset, "the end mark is followed by something else: damaged")
        while self._read(CHUNK_SIZE):  # whatever pads the last record counts for the digest
            pass

    def _fill(self, entry: TarEntry, header: bytes, offset: int) -> None:
        (name, mode, uid, gid, size, mtime, _, _, link) = _HEADER.unpack(header)[:9]
        entry.name = name.split(b"\0", 1)[0]
        entry.link = link.split(b"\0", 1)[0]
        entry.mode = fields.number(mode, "the mode") & 0o7777
        entry.uid = fields.number(uid, "the owner")
        entry.gid = fields.number(gid, "the group")
        entry.size = fields.number(size, "the size")
        entry.mtime_ns = fields.number(mtime, "the time") * 1_000_000_000
        if header[257:262] == b"ustar":
            # GNU keeps other things where POSIX keeps the prefix.
            prefix = header[345:500].split(b"\0", 1)[0]
            if prefix and header[257:265] != b"ustar  \0":
                entry.name = prefix + b"/" + entry.name
            if header[156:157] in b"34":
                entry.rdev_major = fields.number(header[329:337], "the device number")
                entry.rdev_minor = fields.number(header[337:345], "the device number")

    def _set_kind(
        self, entry: TarEntry, header: bytes, pax: dict[bytes, bytes], offset: int
    ) -> None:
        kind = header[156:157]
        old_directory = kind == b"\0" and entry.name.endswith(b"/")
        if kind == b"1":
            # POSIX lets a hard link carry the content again, old archivers only its size; as in
            # Go's archive/tar, which container engines use, there is none.
            entry.hard_link = True
            entry.size = 0
        elif kind in _REGULAR and not old_directory:
            entry.stored = entry.size
        elif kind == b"S":
            entry.stored = fields.number(header[124:136], "the size")
            if b"size" in pax:
                entry.stored = entry.size
        elif kind in _KINDS or old_directory:
            entry.kind = _KINDS.get(kind, stat.S_IFDIR)
            # Only files have content; Go and libarchive skip no data here either.
            entry.size = 0
        elif kind in b"DV":
            entry.kind = stat.S_IFDIR
            entry.stored = entry.size
        else:
            raise self._bad(offset, f"{show(entry.name)}: entries of type {kind!r} are not known")
        if entry.size < 0 or entry.stored < 0 or entry.size >= 1 << 63:
            raise self._bad(offset, f"{show(entry.name)}: a size of {entry.size} bytes cannot be")
        for number, what in ((entry.uid, "owner"), (entry.gid, "group")):
            if not 0 <= number < (1 << 32) - 1:
                raise self._bad(offset, f"{show(entry.name)}: the {what} {number} cannot be")
        if not -(1 << 63) <= entry.mtime_ns // 1_000_000_000 < 1 << 63:
            raise self._bad(offset, f"{show(entry.name)}: its time does not fit into 64 bits")

    def _begin_data(self, entry: TarEntry) -> None:
        self._remaining = entry.stored
        self._padding = -entry.stored % BLOCK

    def _meta(self, header: bytes, offset: int) -> bytes:
        size = fields.number(header[124:136], "the size")
        if not 0 <= size <= META_MAX:
            raise self._bad(offset, f"an extended header of {size} bytes is over the limit")
        body = self._read(size + -size % BLOCK)
        if len(body) < size:
            raise self._bad(offset, "the archive ends inside a header: it was cut short")
        return body[:size]

    # --- PAX

    def _apply_pax(self, entry: TarEntry, pax: dict[bytes, bytes], offset: int) -> None:
        for key, value in pax.items():
            if key.startswith(_SCHILY):
                entry.xattrs[key[len(_SCHILY) :]] = value
                continue
            if key.startswith(_LIBARCHIVE):
                name, content = fields.libarchive_xattr(key[len(_LIBARCHIVE) :], value)
                entry.xattrs.setdefault(name, content)
                continue
            if not value:
                continue
            if key == b"path":
                entry.name = value
            elif key == b"linkpath":
                entry.link = value
            elif key == b"size":
                entry.size = fields.decimal(value, "size")
            elif key == b"uid":
                entry.uid = fields.decimal(value, "uid")
            elif key == b"gid":
                entry.gid = fields.decimal(value, "gid")
            elif key == b"mtime":
                entry.mtime_ns = fields.time_ns(value)
        if sum(len(name) + len(value) for name, value in entry.xattrs.items()) > XATTRS_MAX:
            raise self._bad(offset, f"{show(entry.name)}: more than {XATTRS_MAX} bytes of xattrs")

    # --- sparse files

    def _prepare_sparse(
        self, entry: TarEntry, header: bytes, pax: dict[bytes, bytes], offset: int
    ) -> None:
        if header[156:157] == b"S":
            self._old_sparse(entry, header, offset)
        elif pax.get(b"GNU.sparse.major") == b"1" and pax.get(b"GNU.sparse.minor") == b"0":
            entry.segments = self._map_in_data(entry, offset)
            entry.size = fields.decimal(pax.get(b"GNU.sparse.realsize", b""), "realsize")
        elif b"GNU.sparse.map" in pax:
            numbers = [
                fields.decimal(number, "sparse map")
                for number in pax[b"GNU.sparse.map"].split(b",")
                if number
            ]
            entry.segments = list(zip(numbers[::2], numbers[1::2], strict=False))
            size = pax.get(b"GNU.sparse.size", pax.get(b"GNU.sparse.realsize", b""))
            entry.size = fields.decimal(size, "sparse size")
        else:
            return
        if name := pax.get(b"GNU.sparse.name"):
            entry.name = name
        self._check_map(entry, offset)

    def _old_sparse(self, entry: TarEntry, header: bytes, offset: int) -> None:
        segments = fields.sparse_segments(header[386:482])
        entry.size = fields.number(header[483:495], "the size of a sparse file")
        more = header[482]
        limit = META_MAX // BLOCK
        while more:
            block = self._read(BLOCK)
            limit -= 1
            if len(block) < BLOCK or not limit:
                raise self._bad(offset, "the map of a sparse file does not end")
            segments += fields.sparse_segments(block[:504])
            more = block[504]
        entry.segments = segments

    def _map_in_data(self, entry: TarEntry, offset: int) -> list[tuple[int, int]]:
        """The map of PAX sparse format 1.0: decimal numbers, one a line, before the data, padded to
        a whole block."""
        numbers: list[int] = []
        wanted = 1
        rest = b""
        read = 0
        while len(numbers) < wanted:
            line, newline, after = rest.partition(b"\n")
            if newline:
                numbers.append(fields.decimal(line, "sparse map"))
                rest = after
                if len(numbers) == 1:
                    wanted = 1 + 2 * numbers[0]
                continue
            read += BLOCK
            if read > META_MAX or self._remaining < BLOCK:
                raise self._bad(offset, "the map of a sparse file does not end")
            block = self._read_data(entry, BLOCK)
            if self._record is not None:
                self._record(block)
            rest += block
        return list(zip(numbers[1::2], numbers[2::2], strict=True))

    def _check_map(self, entry: TarEntry, offset: int) -> None:
        position = 0
        total = 0
        assert entry.segments is not None
        for start, length in entry.segments:
            if start < position or length < 0:
                raise self._bad(
                    offset, f"{show(entry.name)}: the map of a sparse file is not in order"
                )
            position = start + length
            total += length
        if position > entry.size or total != self._remaining or entry.size >= 1 << 63:
            raise self._bad(
                offset, f"{show(entry.name)}: the map of a sparse file does not match its sizes"
            )

    # --- the stream

    def _skip(self) -> None:
        count = self._remaining + self._padding
        if self._seekable is not None and count > BLOCK:
            self._seekable.skip(count)
            self._position += count
            count = 0
        while count:
            piece = self._read(min(count, CHUNK_SIZE))
            if not piece:
                if self._remaining == 0 and not self._needs_end:
                    break  # only the padding of the last entry is missing
                raise self._bad(self._position, "the archive ends inside a file: it was cut short")
            count -= len(piece)
            self._remaining = max(0, self._remaining - len(piece))
        self._remaining = self._padding = 0

    def _read(self, size: int) -> bytes:
        data = self._take(size)
        if self._record is not None:
            self._record(data)
        return data

    def _take(self, size: int) -> bytes:
        data = self._source.read(size)
        self._position += len(data)
        return data

    def _bad(self, offset: int, what: str) -> SourceInvalid:
        return SourceInvalid(f"{self._label}: byte {offset}: {what}")
