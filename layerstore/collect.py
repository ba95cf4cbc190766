"""Collection: deletes indexes, splits, objects and kept blobs that nothing refers to.

An index or a split is needed while a row names it or somebody has it open (see `in_use`); an object
while one of them that is needed refers to it. Runs with imports kept out (`session.exclusive`).
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import NamedTuple

from layerstore import digests, in_use, session
from layerstore.errors import StoreError, show
from layerstore.index.reader import Index, Object
from layerstore.objects import Objects
from layerstore.refs import Refs

LAYERS = b"layers"
IMAGES = b"images"
BLOBS = b"blobs"
SUFFIX = b".erofs"
SPLIT_SUFFIX = b".tarsplit"


class Collected(NamedTuple):
    """What was deleted."""

    objects: int
    bytes: int
    indexes: int


def index_path(root: bytes, kind: bytes, digest: str) -> bytes:
    """Where the index of a layer (by diff id) or an image (by chain id) is."""
    return os.path.join(root, kind, digests.hex_of(digest).encode() + SUFFIX)


def split_path(root: bytes, diff_id: str) -> bytes:
    """Where what a layer's tar is rebuilt from is, by diff id."""
    return os.path.join(root, LAYERS, digests.hex_of(diff_id).encode() + SPLIT_SUFFIX)


def blob_path(root: bytes, digest: str) -> bytes:
    """Where a layer's blob is that was kept as it came."""
    return os.path.join(root, BLOBS, digests.hex_of(digest).encode())


def collect(root: bytes, refs: Refs) -> Collected | None:
    """Delete what nothing refers to.

    Returns:
        what that was; None if an import is running, which puts it off until the next one.

    Raises:
        StoreError: a file that is needed cannot be read; nothing was deleted then.
    """
    session.want_collection(root)
    with session.exclusive(root) as alone:
        if not alone:
            return None
        return _collect(root, refs)


def _collect(root: bytes, refs: Refs) -> Collected:
    layers = [layer.diff_id for layer in refs.layers()]
    needed = {
        *(index_path(root, LAYERS, diff_id) for diff_id in layers),
        *(split_path(root, diff_id) for diff_id in layers),
        *(index_path(root, IMAGES, chain) for chain in refs.chains()),
    }
    files = _files(root)
    for path in sorted(needed.difference(files)):
        # What it referred to cannot be told from what nobody needs.
        if path.endswith(SUFFIX):
            raise StoreError(
                f"{show(path)}: the index is missing: nothing is deleted before layerstore fsck"
                " --repair has put it back"
            )
    freed = 0
    unneeded: list[tuple[bytes, int]] = []
    live: set[bytes] = set()
    try:
        for path in files:
            held = None if path in needed else in_use.claim(path)
            if held is None:
                live |= objects_of(path)
            else:
                unneeded.append((path, held))
        for path, held in unneeded:
            freed += os.fstat(held).st_size
            os.unlink(path)
    finally:
        for _, held in unneeded:
            os.close(held)
    objects = Objects(os.path.join(root, b"objects"))
    removed = 0
    for digest in objects:
        if bytes.fromhex(digests.hex_of(digest)) not in live:
            freed += objects.remove(digest)
            removed += 1
    freed += _remove_blobs(root, {blob_path(root, blob.digest) for blob in refs.blobs()})
    _forget_checksums(refs, live)
    _empty_quarantine(objects, live)
    indexes = sum(path.endswith(SUFFIX) for path, _ in unneeded)
    return Collected(removed, freed, indexes)


def _remove_blobs(root: bytes, needed: set[bytes]) -> int:
    """Delete the blobs that no image has; returns the bytes they had."""
    freed = 0
    with contextlib.suppress(FileNotFoundError):  # a store from before there were any
        for entry in os.scandir(os.path.join(root, BLOBS)):
            if entry.path not in needed:
                freed += entry.stat().st_size
                os.unlink(entry.path)
    return freed


def _forget_checksums(refs: Refs, live: set[bytes]) -> None:
    gone = [key for key in refs.checksums() if key not in live]
    if gone:
        with refs.transaction():
            refs.remove_checksums(gone)


def _empty_quarantine(objects: Objects, live: set[bytes]) -> None:
    """A damaged object is kept while it may be the last trace of what it should be."""
    for digest in objects.quarantined():
        if bytes.fromhex(digests.hex_of(digest)) not in live or objects.has(digest):
            os.unlink(objects.quarantine_path(digest))


def _files(root: bytes) -> list[bytes]:
    return [
        os.path.join(root, kind, name)
        for kind in (LAYERS, IMAGES)
        for name in sorted(os.listdir(os.path.join(root, kind)))
    ]


def objects_of(path: bytes) -> set[bytes]:
    """The digests, as 32 bytes each, of all objects an index or a split refers to.

    Raises:
        IndexCorrupt, SplitCorrupt: it cannot be read.
    """
    if path.endswith(SPLIT_SUFFIX):
        from layerstore.split import read_split  # brings a decompressor

        return read_split(path).objects
    return set(sizes_of(path))


def sizes_of(path: bytes) -> dict[bytes, int]:
    """The objects an index refers to, and the size in bytes that each must have.

    Raises:
        IndexCorrupt: it cannot be read.
    """
    found: dict[bytes, int] = {}
    with Index(path) as index:
        seen: set[int] = set()
        waiting = [index.root_nid]
        while waiting:
            nid = waiting.pop()
            for _, child, kind in index.entries(nid):
                if child in seen:
                    continue
                seen.add(child)
                if kind == stat.S_IFDIR >> 12:
                    waiting.append(child)
                elif kind == stat.S_IFREG >> 12:
                    content = index.content(child)
                    if isinstance(content, Object):
                        key = bytes.fromhex((content.path[:2] + content.path[3:]).decode())
                        found[key] = index.stat(child).size
    return found
