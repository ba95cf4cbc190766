"""A compressed blob as a plain stream: verified, decompressed and hashed on a thread of its own.

Reading, both digests and the decompressor release the GIL, so that the thread and the importer,
which hashes and writes files, use two processors.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol, runtime_checkable

import zstandard
from isal import isal_zlib

from layerstore.errors import SourceInvalid
from layerstore.oci.limits import NO_LIMITS, Limits

CHUNK_SIZE = 1 << 20
_QUEUE_LENGTH = 8
"""Chunks on their way between the threads: 8 MiB hide the stalls of either side."""

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = tuple(bytes((0x50 + i,)) + b"\x2a\x4d\x18" for i in range(16))
# isal's stub declares its exception as a constant.
_GZIP_ERRORS: tuple[type[Exception], ...] = (isal_zlib.IsalError, zlib.error)  # type: ignore[assignment]
_OTHERS = {
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x04\x22\x4d\x18": "lz4",
}


class _Blob(Protocol):
    def read(self, size: int, /) -> bytes: ...


@runtime_checkable
class Waiting(Protocol):
    """A blob whose reads may wait for what comes late or never."""

    def give_up(self) -> None:
        """End a read that waits in another thread."""
        ...


class Digested:
    """Passes a stream through and keeps its digest and length.

    Args:
        file: the stream.
        on_read: called with the number of bytes read so far.
        copy: called with what was read.
    """

    def __init__(
        self,
        file: _Blob,
        on_read: Callable[[int], None] | None = None,
        copy: Callable[[bytes], object] | None = None,
    ) -> None:
        self._file = file
        self._on_read = on_read
        self._copy = copy
        self._hasher = hashlib.sha256()
        self.size = 0

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        data = self._file.read(size)
        self._hasher.update(data)
        self.size += len(data)
        if self._copy is not None:
            self._copy(data)
        if self._on_read is not None:
            self._on_read(self.size)
        return data

    @property
    def digest(self) -> str:
        """Of what was read so far."""
        return "sha256:" + self._hasher.hexdigest()


def decompress(blob: _Blob, label: str) -> Iterator[bytes]:
    """The plain content of `blob`, which may be gzip, zstd or not compressed at all.

    The bytes decide, not the media type: several engines write a type that does not match.

    Args:
        blob: the stream.
        label: what it is called in messages.

    Raises:
        SourceInvalid: damaged, cut short, or compressed in a way that layers never are.
    """
    start = blob.read(CHUNK_SIZE)
    if start.startswith(_GZIP):
        return _gunzip(start, blob, label)
    if start.startswith((_ZSTD, *_ZSTD_SKIPPABLE)):
        return _unzstd(start, blob, label)
    for magic, name in _OTHERS.items():
        if start.startswith(magic):
            raise SourceInvalid(
                f"{label}: compressed with {name}: layers are plain, gzip or zstd; recompress it"
            )
    return _plain(start, blob)


def is_compressed(start: bytes) -> bool:
    """Whether a file that starts so is gzip or zstd."""
    return start.startswith((_GZIP, _ZSTD, *_ZSTD_SKIPPABLE))


def _plain(start: bytes, blob: _Blob) -> Iterator[bytes]:
    while start:
        yield start
        start = blob.read(CHUNK_SIZE)


def _gunzip(data: bytes, blob: _Blob, label: str) -> Iterator[bytes]:
    """All members of a gzip file; zeros after the last one are padding (gzip(1))."""
    consumed = 0
    while data:
        member = isal_zlib.decompressobj(wbits=31)
        more = False  # a full chunk came out: there may be another one without more input
        while not member.eof:
            if not data:
                data = blob.read(CHUNK_SIZE)
                if not data and not more:
                    raise SourceInvalid(f"{label}: byte {consumed}: the gzip data is cut short")
            try:
                plain = member.decompress(data, CHUNK_SIZE)
            except _GZIP_ERRORS as error:
                raise SourceInvalid(
                    f"{label}: the gzip data before byte {consumed + len(data)} is damaged"
                    f" ({_reason(error)})"
                ) from None
            rest = member.unused_data if member.eof else member.unconsumed_tail
            consumed += len(data) - len(rest)
            data = rest
            more = len(plain) == CHUNK_SIZE
            if plain:
                yield plain
        data = data.lstrip(b"\0") or blob.read(CHUNK_SIZE)
        while data and not data.strip(b"\0"):
            data = blob.read(CHUNK_SIZE)
        data = data.lstrip(b"\0")
        if data and not data.startswith(_GZIP[: len(data)]):
            raise SourceInvalid(f"{label}: byte {consumed}: something follows the gzip data")


def _unzstd(start: bytes, blob: _Blob, label: str) -> Iterator[bytes]:
    """All frames of a zstd file (RFC 8878), fed to the decompressor block by block: a block makes
    at most 128 KiB, where any larger piece of input may make a thousand times that."""
    source = _Ahead(start, blob, label, "zstd")
    while magic := source.take(4, optional=True):
        if magic in _ZSTD_SKIPPABLE:
            source.skip(int.from_bytes(source.take(4), "little"))
            continue
        if magic != _ZSTD:
            raise SourceInvalid(
                f"{label}: byte {source.offset - 4}: something follows the zstd data"
            )
        yield from _unzstd_frame(source, label)


def _unzstd_frame(source: _Ahead, label: str) -> Iterator[bytes]:
    # 27 bits: what `zstd --ultra --long` writes and its own decompressor takes unasked.
    frame = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
    descriptor = source.take(1)
    single = descriptor[0] >> 5 & 1
    size_length = (single, 2, 4, 8)[descriptor[0] >> 6]
    unit = (
        _ZSTD + descriptor + source.take(1 - single + (0, 1, 2, 4)[descriptor[0] & 3] + size_length)
    )
    last = False
    try:
        frame.decompress(unit)
        while not last:
            header = source.take(3)
            number = int.from_bytes(header, "little")
            last = bool(number & 1)
            unit = header + source.take(1 if number >> 1 & 3 == 1 else number >> 3)
            if last and descriptor[0] & 4:
                unit += source.take(4)
            if plain := frame.decompress(unit):
                yield plain
    except zstandard.ZstdError as error:
        raise SourceInvalid(
            f"{label}: the zstd data before byte {source.offset} is damaged ({_reason(error)})"
        ) from None


class _Ahead:
    """Takes exact lengths from a blob of which the start was read already."""

    def __init__(self, start: bytes, blob: _Blob, label: str, what: str) -> None:
        self._buffer = start
        self._at = 0
        self._blob = blob
        self._label = label
        self._what = what
        self.offset = 0

    def take(self, size: int, *, optional: bool = False) -> bytes:
        """The next `size` bytes; nothing at the end if it is `optional`."""
        while len(self._buffer) - self._at < size:
            more = self._blob.read(CHUNK_SIZE)
            if not more:
                if optional and self._at == len(self._buffer):
                    return b""
                raise SourceInvalid(
                    f"{self._label}: byte {self.offset}: the {self._what} data is cut short"
                )
            self._buffer = self._buffer[self._at :] + more
            self._at = 0
        data = self._buffer[self._at : self._at + size]
        self._at += size
        self.offset += size
        return data

    def skip(self, size: int) -> None:
        """Pass over `size` bytes."""
        while size:
            size -= len(self.take(min(size, CHUNK_SIZE)))


def _reason(error: Exception) -> str:
    return str(error).replace("\n", " ") or type(error).__name__


class Stream:
    """The plain content of a blob, read ahead on a thread.

    Use as a context manager: leaving it ends the thread. After the end has been read, `blob_digest`,
    `blob_size` and `digest` (of the plain content) are known.

    Args:
        blob: the stream; only the thread touches it.
        label: what it is called in messages.
        on_read: called on the thread with the number of bytes of the blob read so far.
        copy: called on the thread with what was read of the blob.
        limits: for what comes out.
    """

    def __init__(
        self,
        blob: BinaryIO,
        label: str,
        on_read: Callable[[int], None] | None = None,
        *,
        copy: Callable[[bytes], object] | None = None,
        limits: Limits = NO_LIMITS,
    ) -> None:
        self._source = blob
        self._blob = Digested(blob, on_read, copy)
        self._limits = limits
        self._label = label
        self._hasher = hashlib.sha256()
        self._size = 0
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(_QUEUE_LENGTH)
        self._stopped = threading.Event()
        self._buffer = b""
        self._at = 0
        self._ended = False
        self._thread = threading.Thread(target=self._run, name=f"read {label}", daemon=True)

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if isinstance(self._source, Waiting):
            self._source.give_up()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    @property
    def blob_digest(self) -> str:
        """Of the blob as it was."""
        return self._blob.digest

    @property
    def blob_size(self) -> int:
        """Bytes of the blob read so far."""
        return self._blob.size

    @property
    def size(self) -> int:
        """Bytes of plain content read so far."""
        return self._size

    @property
    def digest(self) -> str:
        """Of the plain content."""
        return "sha256:" + self._hasher.hexdigest()

    def read(self, size: int, /) -> bytes:
        """Exactly `size` bytes, fewer only at the end.

        Raises:
            SourceInvalid: see `decompress`.
        """
        end = self._at + size
        if end <= len(self._buffer):
            data = self._buffer[self._at : end]
            self._at = end
            return data
        pieces = [self._buffer[self._at :]]
        missing = size - len(pieces[0])
        while True:
            self._buffer, self._at = self._next(), 0
            if len(self._buffer) >= missing or not self._buffer:
                break
            pieces.append(self._buffer)
            missing -= len(self._buffer)
        self._at = min(missing, len(self._buffer))
        pieces.append(self._buffer[: self._at])
        return b"".join(pieces)

    def _next(self) -> bytes:
        if self._ended:
            return b""
        item = self._queue.get()
        if item is None:
            self._ended = True
            return b""
        if isinstance(item, BaseException):
            self._ended = True
            raise item
        return item

    def _run(self) -> None:
        try:
            for chunk in decompress(self._blob, self._label):
                self._hasher.update(chunk)
                self._size += len(chunk)
                self._limits.check_plain(self._size, self._blob.size, self._label)
                if not self._put(chunk):
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, item: bytes | BaseException | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False
