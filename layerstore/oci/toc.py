"""Tables of contents that come with a layer's blob: what their formats have in common.

    zstd_chunked    zstd:chunked of containers/storage
    estargz         eStargz of containerd's stargz-snapshotter

A reader is a generator: it yields spans of the blob, is sent their bytes, and returns the table. It
does no I/O itself. What a table says is checked for what makes no sense; whether it is true is seen
from the tar that comes of it.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from layerstore import digests
from layerstore.errors import SourceInvalid, show
from layerstore.oci.assembly import Plan, Span
from layerstore.oci.compression import decompress
from layerstore.oci.image import parse_object

PACKED_MAX = 32 << 20
PLAIN_MAX = 64 << 20
"""Bytes of a table, as it comes and as JSON: a layer of 31,600 entries has 3 and 10 MB. Parsed, it takes
some ten times that."""


class Payload(NamedTuple):
    """The content of a file: its digest and size, and where in the blob it is."""

    digest: str
    size: int
    start: int
    end: int


class Table(abc.ABC):
    """A table of contents.

    Args:
        payloads: of all files, in the order of the tar.
    """

    split_span: Span | None = None
    """Where tar-split is, which makes another plan; None: there is none."""

    def __init__(self, payloads: list[Payload]) -> None:
        self.payloads = payloads

    @abc.abstractmethod
    def plan(self, is_stored: Callable[[Payload], bool], gap_max: int) -> Plan:
        """How to come by the tar.

        Args:
            is_stored: whether the store has a payload.
            gap_max: see `assembly.plan`; a smaller file is fetched although the store has it.

        Raises:
            SourceInvalid: the table cannot be meant.
        """

    def split_plan(self, split: bytes, is_stored: Callable[[Payload], bool], gap_max: int) -> Plan:
        """As `plan`, with all that lies between the files' content from tar-split.

        Args:
            split: what is at `split_span`.
        """
        raise NotImplementedError


Reader = Generator[list[Span], list[bytes], Table]


def number(entry: dict[str, Any], key: str, what: str, most: int) -> int:
    """A number of an entry that is not negative; 0 where there is none.

    Raises:
        SourceInvalid: it is something else, or more than `most`.
    """
    value = entry.get(key, 0)
    if type(value) is not int or not 0 <= value <= most:
        raise SourceInvalid(f"{what}: {show(key)} {show(str(value))[:40]} cannot be")
    return value


def payload_digest(entry: dict[str, Any], what: str) -> str:
    """The digest of an entry's content.

    Raises:
        SourceInvalid: it has none.
    """
    digest = entry.get("digest")
    if not digests.is_sha256(digest):
        raise SourceInvalid(f"{what}: has no SHA-256 digest")
    return str(digest)


def ordered(payloads: list[Payload], label: str) -> list[Payload]:
    """Payloads by their place.

    Raises:
        SourceInvalid: they overlap.
    """
    payloads = sorted(payloads, key=lambda payload: payload.start)
    position = 0
    for payload in payloads:
        if not position <= payload.start < payload.end:
            raise SourceInvalid(f"{label}: byte {payload.start}: files lie in each other")
        position = payload.end
    return payloads


def entries_of(data: bytes, label: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A table as JSON, and its entries.

    Raises:
        SourceInvalid: it has none, or is of a version that is not known.
    """
    table = parse_object(data, label)
    entries = table.get("entries")
    if table.get("version") != 1:
        raise SourceInvalid(f"{label}: is of version {show(str(table.get('version')))[:40]}, not 1")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise SourceInvalid(f"{label}: has no list of entries")
    return table, entries


class InMemory:
    """Bytes as a blob to be decompressed."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        data = self._data[self._at : self._at + size]
        self._at += len(data)
        return data


def unpacked(data: bytes, label: str) -> bytes:
    """What is in a small blob.

    Raises:
        SourceInvalid: it is damaged, or too much.
    """
    plain = bytearray()
    for chunk in decompress(InMemory(data), label):
        plain += chunk
        if len(plain) > PLAIN_MAX:
            raise SourceInvalid(f"{label}: has more than {PLAIN_MAX} bytes")
    return bytes(plain)
