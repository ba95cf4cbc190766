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
        IndexCorrupt, SplitCorrupt: a file that is needed cannot be read; nothing was deleted then.
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
    unneeded: list[tuple[bytes, int]] = []
    live: set[bytes] = set()
    try:
        for path in _files(root):
            held = None if path in needed else in_use.claim(path)
            if held is None:
                live |= objects_of(path)
            else:
                unneeded.append((path, held))
        for path, _ in unneeded:
            os.unlink(path)
    finally:
        for _, held in unneeded:
            os.close(held)
    objects = Objects(os.path.join(root, b"objects"))
    removed = freed = 0
    for digest in objects:
        if bytes.fromhex(digests.hex_of(digest)) not in live:
            freed += objects.remove(digest)
            removed += 1
    freed += _remove_blobs(root, {blob_path(root, blob.digest) for blob in refs.blobs()})
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
    found: set[bytes] = set()
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
                        found.add(bytes.fromhex((content.path[:2] + content.path[3:]).decode()))
    return found
