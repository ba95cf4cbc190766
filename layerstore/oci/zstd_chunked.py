"""The table of contents of zstd:chunked: each file's content in frames of its own, and so is what
lies between.

    frames, skippable frame (the table), skippable frame (tar-split, since 2024), skippable frame (footer)

Annotations of the layer say where table and tar-split are; the footer repeats it. The table is bound
by its digest in the annotations, tar-split by its digest in the table. With tar-split nothing between
the contents need be fetched. Source: containers/storage, pkg/chunked/internal/minimal/compression.go;
tar-split: vbatts/tar-split, tar/storage/entry.go.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from layerstore import digests
from layerstore.errors import SourceInvalid
from layerstore.oci import estargz, toc
from layerstore.oci.assembly import Packed, Piece, Plan, Span, Stored, plan
from layerstore.oci.compression import decompress
from layerstore.oci.toc import Payload

# The first is older: buildah 1.21 to skopeo 1.9 and their time write it.
_PREFIXES = ("io.containers.zstd-chunked.", "io.github.containers.zstd-chunked.")
_TABLE_PLACE = re.compile(r"([0-9]{1,19}):([0-9]{1,19}):([0-9]{1,19}):1")
_SPLIT_PLACE = re.compile(r"([0-9]{1,19}):([0-9]{1,19}):([0-9]{1,19})")
_FRAME_HEAD = 8
"""Bytes of a skippable frame before its content (RFC 8878, 3.1.2)."""
_FOOTER_MIN = _FRAME_HEAD + 40
_MAGICS = (b"GnUlInUx", b"GNUlInUx")
"""What a footer ends with: in the order of the prefixes."""
_LINE_MAX = 16 << 20
"""Bytes of a line of tar-split: what describes one entry, in base64."""


def reader(annotations: dict[str, Any], size: int, label: str) -> toc.Reader | None:
    """What reads the table of a layer; None if the annotations speak of none.

    Args:
        annotations: of the layer's descriptor.
        size: of its blob in bytes.
        label: what the table is called in messages.
    """
    for prefix in _PREFIXES:
        place = annotations.get(prefix + "manifest-position")
        digest = annotations.get(prefix + "manifest-checksum")
        if isinstance(place, str) and digests.is_sha256(digest):
            split = annotations.get(prefix + "tarsplit-position")
            return _read(place, str(digest), split, size, label)
    return None


def _read(place: str, digest: str, split_place: Any, size: int, label: str) -> toc.Reader:
    found = _TABLE_PLACE.fullmatch(place)
    if found is None:
        raise SourceInvalid(f"{label}: its place cannot be read")
    start, length, plain = map(int, found.groups())
    end = start + length
    if not _FRAME_HEAD <= start < end <= size - _FOOTER_MIN:
        raise SourceInvalid(f"{label}: is not within the {size} bytes of the blob")
    if length > toc.PACKED_MAX or plain > toc.PLAIN_MAX:
        raise SourceInvalid(f"{label}: is larger than is read ({length} and {plain} bytes)")
    packed, footer = yield [(start, end), (size - len(_MAGICS[0]), size)]
    if footer not in _MAGICS:
        raise SourceInvalid(f"{label}: the blob does not end with the footer of zstd:chunked")
    if digests.of_bytes(packed) != digest:
        raise SourceInvalid(f"{label}: is damaged: its digest is not {digest}")
    table, entries = toc.entries_of(toc.unpacked(packed, label), label)
    tar_end = start - _FRAME_HEAD
    if any(
        one.get("type") == "reg" and "offset" in one and "endOffset" not in one for one in entries
    ):
        return (yield from estargz.read_members(entries, tar_end, b"", label))
    payloads = []
    for entry_number, entry in enumerate(entries):
        if entry.get("type") == "reg" and entry.get("size") and entry.get("digest"):
            what = f"{label}: entry {entry_number}"
            payloads.append(
                Payload(
                    toc.payload_digest(entry, what),
                    toc.number(entry, "size", what, 1 << 62),
                    toc.number(entry, "offset", what, tar_end),
                    toc.number(entry, "endOffset", what, tar_end),
                )
            )
    split_digest = table.get("tarSplitDigest")
    chunked = Chunked(toc.ordered(payloads, label), tar_end, label)
    if digests.is_sha256(split_digest):
        chunked.split_span, chunked.split_digest = _split_span(split_place, size), str(split_digest)
    return chunked


def _split_span(place: Any, size: int) -> Span | None:
    found = _SPLIT_PLACE.fullmatch(place) if isinstance(place, str) else None
    if found is None:
        return None
    start, length = int(found[1]), int(found[2])
    return (start, start + length) if 0 < length <= min(size - start, toc.PACKED_MAX) else None


class Chunked(toc.Table):
    """A table.

    Args:
        payloads: of the files, ascending.
        tar_end: where the frames of the tar end in the blob.
        label: what it is called in messages.
    """

    def __init__(self, payloads: list[Payload], tar_end: int, label: str) -> None:
        super().__init__(payloads)
        self.split_digest = ""
        self._tar_end = tar_end
        self._label = label

    def plan(self, is_stored: Callable[[Payload], bool], gap_max: int) -> Plan:
        """As in `toc.Table`: what lies between the contents is fetched."""
        instead = self._instead(is_stored, gap_max)

        def pieces() -> Iterator[Piece]:
            position = 0
            for payload in self.payloads:
                if (piece := instead.get(payload.start)) is not None:
                    yield Packed(position, payload.start)
                    yield piece
                    position = payload.end
            yield Packed(position, self._tar_end)

        return plan(pieces, gap_max)

    def split_plan(self, split: bytes, is_stored: Callable[[Payload], bool], gap_max: int) -> Plan:
        """As in `toc.Table`."""
        if digests.of_bytes(split) != self.split_digest:
            raise SourceInvalid(f"{self._label}: tar-split is damaged: its digest is another")
        instead = self._instead(is_stored, 0)

        def pieces() -> Iterator[Piece]:
            payloads = iter(self.payloads)
            for item in read_split(split, self._label):
                if isinstance(item, bytes):
                    yield item
                    continue
                payload = next(payloads, None)
                if payload is None or payload.size != item:
                    raise SourceInvalid(f"{self._label}: tar-split has other files")
                yield instead.get(payload.start) or Packed(payload.start, payload.end)
            if next(payloads, None) is not None:
                raise SourceInvalid(f"{self._label}: tar-split has fewer files")

        return plan(pieces, gap_max)

    def _instead(
        self, is_stored: Callable[[Payload], bool], gap_max: int
    ) -> dict[int, Stored | Packed]:
        """By its place, what to take instead of a payload: an object, or the same content where it
        comes first in the layer."""
        instead: dict[int, Stored | Packed] = {}
        first: dict[str, Packed] = {}
        for payload in self.payloads:
            if payload.end - payload.start <= gap_max:
                continue
            if is_stored(payload):
                instead[payload.start] = Stored(payload.digest, payload.size)
            elif payload.digest in first:
                instead[payload.start] = first[payload.digest]
            else:
                first[payload.digest] = Packed(payload.start, payload.end)
        return instead


def read_split(packed: bytes, label: str) -> Iterator[bytes | int]:
    """What tar-split says: bytes of the tar, and for a file that is not empty the size of its content.

    Raises:
        SourceInvalid: it cannot be read.
    """
    rest = b""
    for chunk in decompress(toc.InMemory(packed), label):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _LINE_MAX:
            raise SourceInvalid(f"{label}: tar-split has a line of more than {_LINE_MAX} bytes")
        for line in lines:
            yield from _split_line(line, label)
    yield from _split_line(rest, label)


def _split_line(line: bytes, label: str) -> Iterator[bytes | int]:
    if not line.strip():
        return
    try:
        entry = json.loads(line)
        kind, size = entry["type"], entry.get("size", 0)
        if kind == 2:
            yield base64.b64decode(entry.get("payload") or "", validate=True)
        elif kind == 1 and type(size) is int and size >= 0:
            if size:
                yield size
        else:
            raise ValueError
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, binascii.Error):
        raise SourceInvalid(f"{label}: tar-split has a line that cannot be read") from None
