"""Writes the entries of a tar: headers, and the content of files.

Deterministic: PAX records only where ustar has no room. A file is read once, as it is; one that
changes meanwhile is an error.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from layerstore.errors import SourceInvalid, show

CHUNK_SIZE = 1 << 20
BLOCK = 512
END = bytes(2 * BLOCK)
"""What ends a tar."""

_TYPES = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}


class Chunks:
    """What a generator yields, to be read like a file."""

    def __init__(self, chunks: Generator[bytes, None, None]) -> None:
        self._chunks = chunks
        self._buffer = b""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        while not self._buffer:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._buffer = chunk
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def close(self) -> None:
        """Stop reading."""
        self._chunks.close()


@dataclass(slots=True)
class Member:
    """One entry. A directory's `name` ends with a slash.

    `kind`: S_IF*. `mode`: permission bits. `link`: the target of a symlink. `hard_link`: the name of
    an earlier entry that this one is the same file as; empty for none.
    """

    name: bytes
    kind: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    rdev: int = 0
    link: bytes = b""
    hard_link: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


def member_of(name: bytes, status: os.stat_result) -> Member:
    """An entry with the attributes of a file."""
    return Member(
        name,
        stat.S_IFMT(status.st_mode),
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        status.st_rdev,
    )


def file(member: Member, fd: int, path: bytes) -> Iterator[bytes]:
    """A regular file, header and content, holes left out.

    Args:
        fd: open for reading; stays the caller's.
        path: for messages.

    Raises:
        SourceInvalid: it became shorter meanwhile.
    """
    status = os.fstat(fd)
    segments = _data_segments(fd, status)
    if segments is None:
        yield header(member, status.st_size)
        yield from _content(fd, 0, status.st_size, path)
        yield bytes(-status.st_size % BLOCK)
    else:
        yield from _sparse(fd, member, status.st_size, path, segments)


def data(member: Member, content: bytes) -> Iterator[bytes]:
    """A regular file whose content is in memory, header and content."""
    yield header(member, len(content))
    yield content
    yield bytes(-len(content) % BLOCK)


def hole(member: Member, size: int) -> Iterator[bytes]:
    """A regular file of `size` bytes without any data."""
    yield from _sparse(-1, member, size, b"", [(size, 0)])


def _data_segments(fd: int, status: os.stat_result) -> list[tuple[int, int]] | None:
    """The runs of data of a file with holes, as (offset, length); None if it has none."""
    if status.st_blocks * 512 >= status.st_size:
        return None
    segments = []
    position = 0
    try:
        while position < status.st_size:
            try:
                start = os.lseek(fd, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break
            position = min(os.lseek(fd, start, os.SEEK_HOLE), status.st_size)
            segments.append((start, position - start))
    except OSError as error:
        if error.errno == errno.EINVAL:  # a filesystem that cannot tell
            return None
        raise
    if segments == [(0, status.st_size)]:
        return None
    # GNU tar takes a map of nothing for a file of no bytes.
    return segments or [(status.st_size, 0)]


def _sparse(
    fd: int, member: Member, size: int, path: bytes, segments: list[tuple[int, int]]
) -> Iterator[bytes]:
    """PAX sparse format 1.0, as GNU tar writes it."""
    numbers = [len(segments), *(number for segment in segments for number in segment)]
    index = b"".join(b"%d\n" % number for number in numbers)
    index += bytes(-len(index) % BLOCK)
    stored = len(index) + sum(length for _, length in segments)
    records = {
        b"GNU.sparse.major": b"1",
        b"GNU.sparse.minor": b"0",
        b"GNU.sparse.name": member.name,
        b"GNU.sparse.realsize": b"%d" % size,
    }
    yield header(member, stored, records)
    yield index
    for start, length in segments:
        yield from _content(fd, start, length, path)
    yield bytes(-stored % BLOCK)


def _content(fd: int, start: int, length: int, path: bytes) -> Iterator[bytes]:
    while length:
        data = os.pread(fd, min(length, CHUNK_SIZE), start)
        if not data:
            raise changed(path)
        yield data
        start += len(data)
        length -= len(data)


def changed(path: bytes) -> SourceInvalid:
    """The error for a file that is not what it was a moment ago."""
    return SourceInvalid(f"{show(path)}: changed while it was read: import a tree nobody writes to")


def header(member: Member, size: int = 0, records: dict[bytes, bytes] | None = None) -> bytes:
    """The header of an entry, PAX records included.

    Args:
        size: of what follows in the archive, in bytes.
        records: further PAX records.
    """
    pax = dict(records or {})
    short_name = _fit(pax, b"path", member.name, 100)
    short_link = _fit(pax, b"linkpath", member.hard_link or member.link, 100)
    numbers = (
        _fit_number(pax, b"uid", member.uid, 8),
        _fit_number(pax, b"gid", member.gid, 8),
        _fit_number(pax, b"size", size, 12),
    )
    seconds, fraction = divmod(member.mtime_ns, 1_000_000_000)
    if fraction or not 0 <= seconds < 1 << 33:
        pax[b"mtime"] = _decimal_time(member.mtime_ns)
        seconds = min(max(seconds, 0), (1 << 33) - 1)
    if not member.hard_link:
        pax.update({b"SCHILY.xattr." + name: value for name, value in member.xattrs.items()})
    device = stat.S_ISCHR(member.kind) or stat.S_ISBLK(member.kind)
    block = _ustar(
        short_name,
        b"1" if member.hard_link else _TYPES[member.kind],
        (member.mode, *numbers, seconds),
        short_link,
        (os.major(member.rdev), os.minor(member.rdev)) if device else (0, 0),
    )
    if not pax:
        return block
    body = b"".join(pax_record(key, pax[key]) for key in sorted(pax))
    extended = _ustar(b"PaxHeaders/" + short_name[-80:], b"x", (0o644, 0, 0, len(body), 0), b"")
    return extended + body + bytes(-len(body) % BLOCK) + block


def _ustar(
    name: bytes,
    kind: bytes,
    numbers: tuple[int, ...],
    link: bytes,
    device: tuple[int, int] = (0, 0),
) -> bytes:
    mode, uid, gid, size, seconds = numbers
    header = bytearray(BLOCK)
    header[0 : len(name)] = name
    header[100:136] = b"%07o\0%07o\0%07o\0%011o\0" % (mode, uid, gid, size)
    header[136:148] = b"%011o\0" % seconds
    header[148:156] = b" " * 8
    header[156:157] = kind
    header[157 : 157 + len(link)] = link
    header[257:265] = b"ustar\00000"
    header[329:345] = b"%07o\0%07o\0" % device
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _fit(pax: dict[bytes, bytes], key: bytes, value: bytes, room: int) -> bytes:
    """What goes into the header of a `value` that may need a PAX record."""
    if len(value) > room or (value and not value.isascii()):
        pax[key] = value
    return value[:room]


def _fit_number(pax: dict[bytes, bytes], key: bytes, value: int, room: int) -> int:
    if value >= 8 ** (room - 1):
        pax[key] = b"%d" % value
        return 0
    return value


def _decimal_time(time_ns: int) -> bytes:
    sign = b"-" if time_ns < 0 else b""
    seconds, fraction = divmod(abs(time_ns), 1_000_000_000)
    return sign + (b"%d.%09d" % (seconds, fraction)).rstrip(b"0").rstrip(b".")


def pax_record(key: bytes, value: bytes) -> bytes:
    """A PAX record; its length counts its own digits (pax(1), "pax Extended Header")."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while length != len(rest) + len(b"%d" % length):
        length = len(rest) + len(b"%d" % length)
    return b"%d" % length + rest
