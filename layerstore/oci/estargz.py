"""The table of contents of eStargz: a gzip member for each file's content, or each part of a large one.

    members, member with the tar entry stargz.index.json (the table), footer: 51 bytes, where that is

An annotation of the layer has the digest of the table. What follows a file's content, up to the next
file's, is in the same member: its padding and the headers of the next entries. Without that member they
are made from the table, as Go would write them: tried on some members first, and on all of the tar at the
end. Members in which entries follow that this does not do for are fetched. The table of containerd's own
zstd:chunked is of this kind, too. Source: stargz-snapshotter, docs/estargz.md and estargz/estargz.go.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import posixpath
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

from layerstore import digests
from layerstore.errors import SourceInvalid, show
from layerstore.oci import toc
from layerstore.oci.assembly import Packed, Piece, Plan, Span, Stored, plan
from layerstore.oci.go_tar import FORMS, Header, header
from layerstore.oci.tar import BLOCK, TarReader
from layerstore.oci.toc import Payload

_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
_NAME = b"stargz.index.json"
_FOOTER = re.compile(
    rb"\x1f\x8b\x08\x04.{6}\x1a\x00SG\x16\x00([0-9a-f]{16})STARGZ\x01\x00\x00\xff\xff.{8}", re.S
)
_FOOTER_SIZE = 51
_START = 10
_KINDS = {
    "reg": b"0",
    "hardlink": b"1",
    "symlink": b"2",
    "char": b"3",
    "block": b"4",
    "dir": b"5",
    "fifo": b"6",
}
_PLAIN = b"0125"
_SAMPLE_MAX = 64 << 10
"""Bytes of a member that is fetched only to see how headers are written."""
_NUMBER_MAX = 1 << 62


def reader(annotations: dict[str, Any], size: int, label: str) -> toc.Reader | None:
    """What reads the table of a layer; None if the annotations speak of none.

    Args:
        annotations: of the layer's descriptor.
        size: of its blob in bytes.
        label: what the table is called in messages.
    """
    digest = annotations.get(_DIGEST)
    return _read(str(digest), size, label) if digests.is_sha256(digest) else None


def _read(digest: str, size: int, label: str) -> toc.Reader:
    footer_start = size - _FOOTER_SIZE
    if footer_start < _START:
        raise SourceInvalid(f"{label}: the blob is too small for one")
    start, footer = yield [(0, _START), (footer_start, size)]
    found = _FOOTER.fullmatch(footer)
    if found is None or not start.startswith(b"\x1f\x8b"):
        raise SourceInvalid(f"{label}: the blob does not end with the footer of eStargz")
    tar_end = int(found[1], 16)
    if not 0 < tar_end < footer_start:
        raise SourceInvalid(f"{label}: is not within the {size} bytes of the blob")
    if footer_start - tar_end > toc.PACKED_MAX:
        raise SourceInvalid(f"{label}: is larger than is read ({footer_start - tar_end} bytes)")
    (packed,) = yield [(tar_end, footer_start)]
    last = toc.unpacked(packed, label)
    archive = TarReader(toc.InMemory(last), label)
    entry = next(iter(archive), None)
    if entry is None or entry.name != _NAME or entry.segments is not None:
        raise SourceInvalid(f"{label}: is missing where the footer says that it is")
    data = b"".join(archive.data(entry))
    if digests.of_bytes(data) != digest:
        raise SourceInvalid(f"{label}: is damaged: its digest is not {digest}")
    _, entries = toc.entries_of(data, label)
    return (yield from read_members(entries, tar_end, last, label))


def read_members(
    entries: list[dict[str, Any]], tar_end: int, last: bytes, label: str
) -> Generator[list[Span], list[bytes], Members]:
    """The table that such entries make.

    Args:
        entries: as JSON has them.
        tar_end: where in the blob the members end that they speak of.
        last: what follows in the tar.
        label: what the table is called in messages.
    """
    files, headers_only = _files(entries, tar_end, label)
    table = Members(files, headers_only, tar_end, last)
    samples = table.samples()
    if samples:
        table.learn(samples, (yield [(one.starts[-1], one.end) for one in samples]), label)
    return table


@dataclass(slots=True)
class _File:
    """A file with content. `starts`: of its members. `end`: of the last. `rest`: bytes of content in
    the last. `following`: the entries whose headers follow in it."""

    payload: Payload
    starts: list[int]
    rest: int
    end: int = 0
    following: list[Header] = field(default_factory=list)

    @property
    def is_plain(self) -> bool:
        """Whether what follows may be made from the table. Device nodes and what stands beside them are
        often of another archiver than the rest (mmdebstrap's, GNU's format), and whiteouts have fields
        that no table has (buildah's are linked to the entry before)."""
        return all(
            entry.kind in _PLAIN and not posixpath.basename(entry.name).startswith(b".wh.")
            for entry in self.following
        )

    def tail(self, form: str) -> bytes:
        """What follows its content, up to the next file's."""
        padding = bytes(-self.payload.size % BLOCK)
        return padding + b"".join(header(entry, form) for entry in self.following)


class Members(toc.Table):
    """A table.

    Args:
        files: that have content, in the order of the tar.
        start: where the first of them starts in the blob.
        tar_end, last: see `read_members`.
    """

    def __init__(self, files: list[_File], start: int, tar_end: int, last: bytes) -> None:
        super().__init__([file.payload for file in files])
        self.form: str | None = None
        """How headers are written; None if it is not known."""
        self._files = files
        self._start = start
        self._tar_end = tar_end
        self._last = last

    def samples(self) -> list[_File]:
        """Small members that tell how headers are written: for each kind of entry the first that it
        follows in, and for each that needs more room than ustar has."""
        samples: dict[int, _File] = {}
        seen: set[tuple[bytes, ...]] = set()
        for file in self._files:
            if file.end - file.starts[-1] > _SAMPLE_MAX or not file.is_plain:
                continue
            for entry in file.following:
                traits = (
                    entry.kind,
                    b"n" * (len(entry.name) > 100),
                    b"l" * (len(entry.link) > 100),
                )
                if traits not in seen:
                    seen.add(traits)
                    samples[file.end] = file
        return list(samples.values())

    def learn(self, samples: list[_File], members: list[bytes], label: str) -> None:
        """See how headers are written.

        Args:
            samples: some files.
            members: the last member of each.
            label: what the table is called in messages.
        """
        tails = [
            toc.unpacked(member, label)[file.rest :]
            for file, member in zip(samples, members, strict=True)
        ]
        for form in FORMS:
            if all(file.tail(form) == tail for file, tail in zip(samples, tails, strict=True)):
                self.form = form
                return

    def plan(self, is_stored: Callable[[Payload], bool], gap_max: int) -> Plan:
        """As in `toc.Table`."""
        stored = {
            file.end
            for file in self._files
            if file.end - file.starts[0] > gap_max and is_stored(file.payload)
        }
        form = self.form
        made = {file.end for file in self._files if form is not None and file.is_plain}

        def pieces() -> Iterator[Piece]:
            yield Packed(0, self._start)
            for file in self._files:
                payload = file.payload
                if form is not None and file.end in stored and file.end in made:
                    yield Stored(payload.digest, payload.size)
                    yield file.tail(form)
                elif file.end in stored and len(file.starts) > 1:
                    yield Stored(payload.digest, payload.size)
                    yield Packed(file.starts[-1], file.end, file.rest)
                else:
                    yield Packed(file.starts[0], file.end)
            yield self._last

        return plan(pieces, gap_max)


def _files(entries: list[dict[str, Any]], tar_end: int, label: str) -> tuple[list[_File], int]:
    """The files with content, and where the first starts."""
    files: list[_File] = []
    owners: dict[tuple[str, int], bytes] = {}
    position = 0
    for number, entry in enumerate(entries):
        what = f"{label}: entry {number}"
        kind = entry.get("type")
        if kind == "chunk" and not files:
            raise SourceInvalid(f"{what}: is a part of no file")
        size = toc.number(entry, "size", what, _NUMBER_MAX)
        if entry.get("innerOffset"):
            raise SourceInvalid(f"{what}: is not the first in its member, which is not read")
        if kind != "chunk":
            made = _header(entry, owners, what)
            if files:
                files[-1].following.append(made)
        if kind != "chunk" and not (kind == "reg" and size):
            continue
        start = toc.number(entry, "offset", what, tar_end)
        if not position < start < tar_end:
            raise SourceInvalid(f"{what}: byte {start}: files lie in each other")
        position = start
        if kind == "chunk":
            file = files[-1]
            file.starts.append(start)
            file.rest = file.payload.size - toc.number(entry, "chunkOffset", what, _NUMBER_MAX)
            if not 0 < file.rest < file.payload.size:
                raise SourceInvalid(f"{what}: is not within its file")
        else:
            if files:
                files[-1].end = start
            payload = Payload(toc.payload_digest(entry, what), size, start, start)
            files.append(_File(payload, [start], size))
    if not files:
        raise SourceInvalid(f"{label}: has no file with content")
    files[-1].end = tar_end
    for file in files:
        file.payload = file.payload._replace(end=file.end)
    return files, files[0].starts[0]


def _header(entry: dict[str, Any], owners: dict[tuple[str, int], bytes], what: str) -> Header:
    kind = _KINDS.get(str(entry.get("type")))
    if kind is None:
        raise SourceInvalid(f"{what}: is of type {show(str(entry.get('type')))[:40]}")
    uid, gid = (toc.number(entry, key, what, _NUMBER_MAX) for key in ("uid", "gid"))
    try:
        return Header(
            _text(entry, "name"),
            kind,
            toc.number(entry, "size", what, _NUMBER_MAX) if kind == b"0" else 0,
            toc.number(entry, "mode", what, _NUMBER_MAX),
            uid,
            gid,
            _seconds(entry.get("modtime", "")),
            _text(entry, "linkName"),
            _owner(owners, "userName", uid, entry),
            _owner(owners, "groupName", gid, entry),
            toc.number(entry, "devMajor", what, _NUMBER_MAX),
            toc.number(entry, "devMinor", what, _NUMBER_MAX),
            {
                name.encode(): base64.b64decode(value, validate=True)
                for name, value in (entry.get("xattrs") or {}).items()
            },
        )
    except (TypeError, AttributeError, ValueError, OverflowError, binascii.Error):
        raise SourceInvalid(f"{what}: cannot be read") from None


def _text(entry: dict[str, Any], key: str) -> bytes:
    value: str = entry.get(key, "")
    return value.encode()


def _owner(owners: dict[tuple[str, int], bytes], key: str, number: int, entry: Any) -> bytes:
    """A name; the table has it only where it is another than the last of the same number."""
    if name := _text(entry, key):
        owners[key, number] = name
    return owners.get((key, number), b"")


def _seconds(text: str) -> int:
    return int(datetime.datetime.fromisoformat(text).timestamp()) if text else 0
