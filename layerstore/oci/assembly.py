"""A layer's tar put together from files that are in the store and ranges of its compressed blob.

A table of contents says which range of the blob holds which file, and its digest; what the store has
is not fetched. Nothing here is trusted: who reads the tar compares its digest with the diff id, and
an object gets its name from its own content.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import NamedTuple, Protocol

from layerstore.errors import SourceInvalid, show
from layerstore.objects import Objects
from layerstore.oci.compression import decompress
from layerstore.oci.limits import Limits
from layerstore.oci.tar_writer import Chunks

CHUNK_SIZE = 1 << 20

Span = tuple[int, int]
"""Of a blob: where it starts, and where what follows starts."""


class Packed(NamedTuple):
    """A range of the blob that can be decompressed by itself, but for the first `skip` plain bytes."""

    start: int
    end: int
    skip: int = 0


class Stored(NamedTuple):
    """All of an object, which has this size."""

    digest: str
    size: int


Piece = Packed | Stored | bytes
"""What a tar consists of; bytes are themselves."""


class Plan(NamedTuple):
    """How to come by a tar.

    `pieces`: makes them anew at each call, in the order of the tar; raises SourceInvalid for a table
    that cannot be meant. `spans`: what has to be fetched for them, ascending, apart from each other.
    """

    pieces: Callable[[], Iterator[Piece]]
    spans: list[Span]

    @property
    def size(self) -> int:
        """Bytes to be fetched."""
        return sum(end - start for start, end in self.spans)


def plan(pieces: Callable[[], Iterator[Piece]], gap_max: int) -> Plan:
    """The plan for pieces.

    Args:
        pieces: makes them.
        gap_max: so many bytes that nobody needs are fetched rather than asked around.
    """
    needed = sorted((one.start, one.end) for one in pieces() if isinstance(one, Packed))
    return Plan(lambda: _adjoined(pieces()), merge(needed, gap_max))


def _adjoined(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Pieces, those joined that are one range of the blob: to start decompressing takes time."""
    last: Packed | None = None
    for piece in pieces:
        if last is not None:
            if isinstance(piece, Packed) and piece.start == last.end and not piece.skip:
                last = last._replace(end=piece.end)
                continue
            yield last
            last = None
        if isinstance(piece, Packed):
            last = piece
        else:
            yield piece
    if last is not None:
        yield last


def merge(spans: Iterable[Span], gap_max: int) -> list[Span]:
    """Join ascending spans that overlap or are at most `gap_max` bytes apart; empty ones go."""
    merged: list[Span] = []
    for start, end in spans:
        if start >= end:
            continue
        if merged and start - merged[-1][1] <= gap_max:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


class Fetched(Protocol):
    """The ranges of a blob that a plan asks for, read while they come."""

    def read_at(self, start: int, size: int) -> bytes:
        """At most `size` bytes from there on, waiting for the first of them; none if nobody waits for
        more."""
        ...

    def give_up(self) -> None:
        """End a read that waits in another thread, and all later ones."""
        ...


class Assembled(Chunks):
    """The tar, to be read like a file.

    Args:
        pieces: of it.
        fetched: the ranges they need.
        objects: of the store.
        blob_size: of the whole blob, in bytes.
        label: what the layer is called in messages.
        limits: for what comes out of the blob.
    """

    def __init__(
        self,
        pieces: Iterable[Piece],
        fetched: Fetched,
        objects: Objects,
        blob_size: int,
        label: str,
        limits: Limits,
    ) -> None:
        self._fetched = fetched
        self._objects = objects
        self._label = label
        self._limits = limits
        self._blob_size = blob_size
        super().__init__(self._joined(pieces))

    def give_up(self) -> None:
        """As `compression.Waiting` has it."""
        self._fetched.give_up()

    def _joined(self, pieces: Iterable[Piece]) -> Generator[bytes, None, None]:
        """The tar in chunks of a fair size: most pieces are a header of 512 bytes."""
        waiting: list[bytes] = []
        count = total = 0
        for piece in pieces:
            for data in self._content(piece):
                waiting.append(data)
                count += len(data)
                if count >= CHUNK_SIZE:
                    total += count
                    # As if all of the blob had been read.
                    self._limits.check_plain(total, self._blob_size, self._label)
                    yield b"".join(waiting)
                    waiting, count = [], 0
        if count:
            yield b"".join(waiting)

    def _content(self, piece: Piece) -> Iterator[bytes]:
        if isinstance(piece, bytes):
            return iter((piece,))
        if isinstance(piece, Stored):
            return self._stored(piece)
        return self._unpacked(piece)

    def _stored(self, piece: Stored) -> Iterator[bytes]:
        fd = self._objects.open(piece.digest)
        try:
            if os.fstat(fd).st_size != piece.size:
                raise SourceInvalid(
                    f"{self._label}: its table of contents gives {show(piece.digest)} a size of"
                    f" {piece.size} bytes, which is not that of this object"
                )
            left = piece.size
            while left and (data := os.read(fd, min(left, CHUNK_SIZE))):
                left -= len(data)
                yield data
        finally:
            os.close(fd)

    def _unpacked(self, piece: Packed) -> Iterator[bytes]:
        skip = piece.skip
        for data in decompress(_Range(self._fetched, piece.start, piece.end), self._label):
            if skip:
                skip, data = max(0, skip - len(data)), data[skip:]
            yield data


class _Range:
    def __init__(self, fetched: Fetched, start: int, end: int) -> None:
        self._fetched = fetched
        self._position = start
        self._end = end

    def read(self, size: int, /) -> bytes:
        size = min(size, self._end - self._position)
        data = self._fetched.read_at(self._position, size) if size else b""
        self._position += len(data)
        return data
