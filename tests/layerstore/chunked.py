"""Blobs of layers with a table of contents, written by the book: every byte can be got wrong."""

from __future__ import annotations

import base64
import io
import json
import struct
import tarfile
import time
import zlib
from collections.abc import Callable
from typing import Any

import zstandard

from tests.layerstore.archives import OCI, Item, Layout, digest_of, gzipped, tar_of

NEW = "io.github.containers.zstd-chunked."
OLD = "io.containers.zstd-chunked."
_MAGIC = {NEW: b"GNUlInUx", OLD: b"GnUlInUx"}
_KINDS = {
    tarfile.REGTYPE: "reg",
    tarfile.DIRTYPE: "dir",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
}

Change = Callable[[dict[str, Any]], object]


def members(tar: bytes) -> list[tarfile.TarInfo]:
    """The entries of a tar."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return archive.getmembers()


def trimmed(tar: bytes) -> bytes:
    """A tar without what pads its last record: skopeo 1.9 leaves that out."""
    end = 0
    for member in members(tar):
        size = member.size if member.isreg() else 0
        end = max(end, member.offset_data + size + -size % 512)
    return tar[:end] + bytes(1024)


def frame(data: bytes) -> bytes:
    """A zstd frame."""
    return zstandard.ZstdCompressor(3).compress(data) if data else b""


def skippable(data: bytes) -> bytes:
    """A frame that decompressors pass over."""
    return b"\x50\x2a\x4d\x18" + struct.pack("<I", len(data)) + data


def zstd_chunked(
    tar: bytes, *, prefix: str = NEW, split: bool = False, change: Change | None = None
) -> tuple[bytes, dict[str, str]]:
    """A layer's blob and its annotations, as containers/storage writes them.

    Args:
        tar: plain.
        prefix: of the annotations.
        split: with tar-split.
        change: changes the table before it is written.
    """
    blob = bytearray()
    entries: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    position = 0
    for member in members(tar):
        entry: dict[str, Any] = {"type": _KINDS[member.type], "name": member.name}
        if member.linkname:
            entry["linkName"] = member.linkname
        size = member.size if member.isreg() else 0
        if size:
            start, end = member.offset_data, member.offset_data + size
            blob += frame(tar[position:start])
            parts.append({"type": 2, "payload": _text(tar[position:start])})
            content = tar[start:end]
            entry |= {"size": size, "digest": digest_of(content), "offset": len(blob)}
            # Large files in chunks, each a frame.
            for at in range(0, size, 50_000):
                blob += frame(content[at : at + 50_000])
            entry["endOffset"] = len(blob)
            position = end
        parts.append({"type": 1, "name": member.name, "size": size, "payload": None})
        entries.append(entry)
    blob += frame(tar[position:])
    parts.append({"type": 2, "payload": _text(tar[position:])})
    table: dict[str, Any] = {"version": 1, "entries": entries}
    lines = "".join(json.dumps(part) + "\n" for part in parts).encode()
    packed_split = frame(lines)
    if split:
        table["tarSplitDigest"] = digest_of(packed_split)
    if change is not None:
        change(table)
    return _finished(blob, table, (packed_split, len(lines)) if split else None, prefix)


def _finished(
    blob: bytearray, table: dict[str, Any], split: tuple[bytes, int] | None, prefix: str
) -> tuple[bytes, dict[str, str]]:
    plain = json.dumps(table).encode()
    packed = frame(plain)
    place = [len(blob) + 8, len(packed), len(plain), 1]
    annotations = {
        f"{prefix}manifest-checksum": digest_of(packed),
        f"{prefix}manifest-position": ":".join(map(str, place)),
    }
    blob += skippable(packed)
    numbers = place
    if split is not None:
        split_place = [len(blob) + 8, len(split[0]), split[1]]
        annotations[f"{prefix}tarsplit-position"] = ":".join(map(str, split_place))
        blob += skippable(split[0])
        numbers = place + split_place
    blob += skippable(struct.pack(f"<{len(numbers)}Q", *numbers) + _MAGIC[prefix])
    return bytes(blob), annotations


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def layout_with(layers: list[tuple[bytes, bytes, dict[str, str]]]) -> Layout:
    """The layout of an image; of each layer the tar, the blob and the annotations."""
    layout = Layout()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest_of(tar) for tar, _, _ in layers]},
    }
    descriptors = []
    for _, blob, words in layers:
        suffix = "+gzip" if blob.startswith(b"\x1f\x8b") else "+zstd"
        kind = f"{OCI}.layer.v1.tar{suffix}"
        descriptors.append(layout.add(blob, kind, annotations=words))
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": layout.add_json(config, f"{OCI}.config.v1+json"),
        "layers": descriptors,
    }
    layout.index = {
        "schemaVersion": 2,
        "manifests": [layout.add_json(manifest, f"{OCI}.manifest.v1+json")],
    }
    return layout


def estargz(
    tar: bytes, *, change: Change | None = None, chunk_size: int = 50_000
) -> tuple[bytes, dict[str, str]]:
    """A layer's blob and its annotations, as stargz-snapshotter writes them, but that the tar stays as
    it is. What comes out of the blob has the table in it: see `plain`.

    Args:
        tar: plain.
        change: changes the table before it is written.
        chunk_size: bytes of a file in a member.
    """
    blob = bytearray()
    entries: list[dict[str, Any]] = []
    waiting = b""
    position = end = 0
    for member in members(tar):
        entry: dict[str, Any] = {
            "name": member.name + "/" * member.isdir(),
            "type": _KINDS[member.type],
            "mode": member.mode,
            "modtime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(member.mtime)),
            "uid": member.uid,
            "gid": member.gid,
            "linkName": member.linkname,
        }
        entries.append(entry)
        size = member.size if member.isreg() else 0
        end = member.offset_data + size + -size % 512
        if not size:
            continue
        start = member.offset_data
        content = tar[start : start + size]
        entry |= {"size": size, "digest": digest_of(content)}
        blob += gzipped(waiting + tar[position:start])
        for at in range(0, size, chunk_size):
            if at:
                blob += gzipped(waiting)
                entry = {"name": entry["name"], "type": "chunk", "chunkOffset": at}
                entries.append(entry)
            entry["offset"] = len(blob)
            waiting = content[at : at + chunk_size]
        position = start + size
    blob += gzipped(waiting + tar[position:end])
    table = {"version": 1, "entries": entries}
    if change is not None:
        change(table)
    data = json.dumps(table).encode()
    place = len(blob)
    blob += gzipped(trimmed(tar_of([Item("stargz.index.json", data)])))
    extra = b"SG\x16\x00%016xSTARGZ" % place
    blob += b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff" + struct.pack("<H", len(extra)) + extra
    blob += b"\x01\x00\x00\xff\xff" + bytes(8)
    return bytes(blob), {"containerd.io/snapshot/stargz/toc.digest": digest_of(data)}


def plain(blob: bytes) -> bytes:
    """The tar of a layer's blob."""
    if not blob.startswith(b"\x1f\x8b"):
        stream = zstandard.ZstdDecompressor().stream_reader(blob, read_across_frames=True)
        return stream.read()
    whole = bytearray()
    while blob:
        member = zlib.decompressobj(31)
        whole += member.decompress(blob)
        blob = member.unused_data
    return bytes(whole)
