"""The tar stream of a directory tree: the layer that a `dir:` source is.

Deterministic: names in byte order, PAX records only where ustar has no room. A file is read once,
as it is; one that changes meanwhile is an error.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator

from layerstore.errors import SourceInvalid, show
from layerstore.index.writer import can_store_xattr

CHUNK_SIZE = 1 << 20
_BLOCK = 512
_TYPES = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}
_NO_XATTRS = (errno.EOPNOTSUPP, errno.ENODATA, errno.EPERM, errno.EACCES)


class TreeTar:
    """A tar stream of everything below a directory, to be read like a file.

    Sockets have no place in a tar and are left out, as GNU tar leaves them out.

    Args:
        path: the directory; its own attributes become the root's.
    """

    def __init__(self, path: bytes) -> None:
        self._path = path
        self._chunks = self._stream()
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

    def _stream(self) -> Generator[bytes, None, None]:
        links: dict[tuple[int, int], bytes] = {}
        waiting = [b""]
        while waiting:
            name = waiting.pop()
            path = os.path.join(self._path, name) if name else self._path
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            if kind == stat.S_IFSOCK:
                continue
            if kind == stat.S_IFDIR:
                yield _header(b"./" + name + (b"/" if name else b""), status, path)
                children = sorted(os.listdir(path), reverse=True)
                waiting += [os.path.join(name, child) for child in children]
                continue
            key = (status.st_dev, status.st_ino)
            if status.st_nlink > 1 and key in links:
                yield _header(b"./" + name, status, path, hard_link=links[key])
                continue
            links[key] = b"./" + name
            if kind == stat.S_IFREG:
                yield from _file(b"./" + name, path)
            else:
                yield _header(b"./" + name, status, path)
        yield bytes(2 * _BLOCK)


def _file(name: bytes, path: bytes) -> Iterator[bytes]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _changed(path)
        segments = _data_segments(fd, status)
        if segments is None:
            yield _header(name, status, path, size=status.st_size)
            yield from _content(fd, 0, status.st_size, path)
            yield bytes(-status.st_size % _BLOCK)
        else:
            yield from _sparse(fd, name, status, path, segments)
    finally:
        os.close(fd)


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
    return None if segments == [(0, status.st_size)] else segments


def _sparse(
    fd: int, name: bytes, status: os.stat_result, path: bytes, segments: list[tuple[int, int]]
) -> Iterator[bytes]:
    """PAX sparse format 1.0, as GNU tar writes it."""
    numbers = [len(segments), *(number for segment in segments for number in segment)]
    index = b"".join(b"%d\n" % number for number in numbers)
    index += bytes(-len(index) % _BLOCK)
    stored = len(index) + sum(length for _, length in segments)
    records = {
        b"GNU.sparse.major": b"1",
        b"GNU.sparse.minor": b"0",
        b"GNU.sparse.name": name,
        b"GNU.sparse.realsize": b"%d" % status.st_size,
    }
    yield _header(name, status, path, size=stored, records=records)
    yield index
    for start, length in segments:
        yield from _content(fd, start, length, path)
    yield bytes(-stored % _BLOCK)


def _content(fd: int, start: int, length: int, path: bytes) -> Iterator[bytes]:
    while length:
        data = os.pread(fd, min(length, CHUNK_SIZE), start)
        if not data:
            raise _changed(path)
        yield data
        start += len(data)
        length -= len(data)


def _changed(path: bytes) -> SourceInvalid:
    return SourceInvalid(f"{show(path)}: changed while it was read: import a tree nobody writes to")


def _header(
    name: bytes,
    status: os.stat_result,
    path: bytes,
    *,
    size: int = 0,
    hard_link: bytes | None = None,
    records: dict[bytes, bytes] | None = None,
) -> bytes:
    pax = dict(records or {})
    kind = stat.S_IFMT(status.st_mode)
    link = hard_link or b""
    if kind == stat.S_IFLNK and hard_link is None:
        link = os.readlink(path)
    short_name = _fit(pax, b"path", name, 100)
    short_link = _fit(pax, b"linkpath", link, 100)
    numbers = (
        _fit_number(pax, b"uid", status.st_uid, 8),
        _fit_number(pax, b"gid", status.st_gid, 8),
        _fit_number(pax, b"size", size, 12),
    )
    seconds, fraction = divmod(status.st_mtime_ns, 1_000_000_000)
    if fraction or not 0 <= seconds < 1 << 33:
        pax[b"mtime"] = _decimal_time(status.st_mtime_ns)
        seconds = min(max(seconds, 0), (1 << 33) - 1)
    if hard_link is None:
        pax.update(_xattrs(path))
    device = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
    header = _ustar(
        short_name,
        b"1" if hard_link is not None else _TYPES[kind],
        (stat.S_IMODE(status.st_mode), *numbers, seconds),
        short_link,
        (os.major(status.st_rdev), os.minor(status.st_rdev)) if device else (0, 0),
    )
    if not pax:
        return header
    body = b"".join(_record(key, pax[key]) for key in sorted(pax))
    extended = _ustar(b"PaxHeaders/" + short_name[-80:], b"x", (0o644, 0, 0, len(body), 0), b"")
    return extended + body + bytes(-len(body) % _BLOCK) + header


def _ustar(
    name: bytes,
    kind: bytes,
    numbers: tuple[int, ...],
    link: bytes,
    device: tuple[int, int] = (0, 0),
) -> bytes:
    mode, uid, gid, size, seconds = numbers
    header = bytearray(_BLOCK)
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


def _record(key: bytes, value: bytes) -> bytes:
    """A PAX record; its length counts its own digits."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while length != len(rest) + len(b"%d" % length):
        length = len(rest) + len(b"%d" % length)
    return b"%d" % length + rest


def _xattrs(path: bytes) -> Iterator[tuple[bytes, bytes]]:
    """What belongs to the tree: labels and signatures (security.selinux, .ima, .evm) are this
    host's, as container engines see it."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return
        raise
    for text in names:
        name = os.fsencode(text)
        if not can_store_xattr(name):
            continue
        if name.startswith(b"security.") and name != b"security.capability":
            continue
        try:
            value = os.getxattr(path, name, follow_symlinks=False)
        except OSError as error:
            if error.errno in _NO_XATTRS:
                continue
            raise
        yield b"SCHILY.xattr." + name, value
