"""Collection: deletes indexes, splits, objects and kept blobs that nothing refers to.

An index or a split is needed while a row names it or somebody has it open (see `in_use`); an object
while one of them that is needed refers to it. Runs with imports kept out (`session.exclusive`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from array import array
from typing import NamedTuple

from layerstore import digests, in_use, session
from layerstore.errors import IndexCorrupt, StoreError, show
from layerstore.index.reader import Index, Object
from layerstore.objects import Objects
from layerstore.refs import Refs

LAYERS = b"layers"
IMAGES = b"images"
BLOBS = b"blobs"
SUFFIX = b".erofs"
SPLIT_SUFFIX = b".tarsplit"

_REDIRECT = re.compile(rb"overlay\.redirect/([0-9a-f]{2})/([0-9a-f]{62})")
"""The mark of an object in an index, from the end of its name on."""
_REDIRECT_SIZE = len("overlay.redirect/ab/") + 62
_RELEASE_EVERY = 1 << 13


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
    layers = refs.layers()
    indexes = {index_path(root, LAYERS, row.diff_id): row.index_digest for row in layers}
    for chain, digest in refs.chains().items():
        indexes[index_path(root, IMAGES, chain)] = digest
    needed = {*indexes, *(split_path(root, row.diff_id) for row in layers)}
    files = _files(root)
    for path in sorted(needed.difference(files)):
        # What it referred to cannot be told from what nobody needs.
        if path.endswith(SUFFIX):
            raise StoreError(
                f"{show(path)}: the index is missing: nothing is deleted before layerstore fsck"
                " --repair has put it back"
            )
    live: set[bytes] = set()
    unneeded = []
    # All that can be seen to be damaged is seen before anything is deleted.
    for path in files:
        if path in indexes:
            live |= objects_named_in(path, indexes[path])
        elif path in needed or (held := in_use.claim(path)) is None:
            live |= objects_of(path)
        else:
            # Not kept: there may be more of them than a process may have open.
            os.close(held)
            unneeded.append(path)
    freed = count = 0
    for path in unneeded:
        held = in_use.claim(path)
        if held is None:
            live |= objects_of(path)
            continue
        try:
            freed += os.fstat(held).st_size
            count += path.endswith(SUFFIX)
            os.unlink(path)
        finally:
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
    return Collected(removed, freed, count)


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
    gone = [key for key in refs.checksum_keys() if key not in live]
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


def objects_named_in(path: bytes, digest: str) -> set[bytes]:
    """The digests, as 32 bytes each, of all objects that an index refers to, and perhaps of some that it
    only has in the content of a small file. Faster than `objects_of`: what a file of this digest
    consists of need not be looked at.

    Args:
        path: of the index.
        digest: of the file, as it was made.

    Raises:
        IndexCorrupt: it has another.
    """
    found: set[bytes] = set()
    hasher = hashlib.sha256()
    rest = b""
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
            data = rest + chunk
            found.update(first + second for first, second in _REDIRECT.findall(data))
            rest = data[1 - _REDIRECT_SIZE :]
    if hasher.hexdigest() != digests.hex_of(digest):
        raise IndexCorrupt(path, 0, f"expected a file with the digest {digest}, as it was made")
    return {bytes.fromhex(name.decode()) for name in found}


def sizes_of(path: bytes) -> dict[bytes, int]:
    """The objects an index refers to, and the size in bytes that each must have.

    Raises:
        IndexCorrupt: it cannot be read.
    """
    found: dict[bytes, int] = {}
    with Index(path) as index:
        seen = bytearray((index.size >> 8) + 1)  # a bit for each inode there can be
        waiting = array("Q", [index.root_nid])
        count = 0
        while waiting:
            for _, child, kind in index.entries(waiting.pop()):
                regular = kind == stat.S_IFREG >> 12
                if not regular and kind != stat.S_IFDIR >> 12:
                    continue
                status = index.stat(child)  # there is such an inode
                if seen[child >> 3] & 1 << (child & 7):
                    continue
                seen[child >> 3] |= 1 << (child & 7)
                if regular:
                    content = index.content(child)
                    if isinstance(content, Object):
                        key = bytes.fromhex((content.path[:2] + content.path[3:]).decode())
                        found[key] = status.size
                else:
                    waiting.append(child)
                count += 1
                if count % _RELEASE_EVERY == 0:
                    index.release()
    return found
