"""du: what the store takes, part by part and image by image, so that it adds up.

Sizes come in two kinds, as du(1) has them: apparent, the bytes in files; and on the disk, the blocks
they take. The parts of a store together are what du(1) says of its directory. An image's `total` is
everything it needs; `unique` what no other image needs, `shared` the rest; `reclaimable` what
removing it now would give back: what is unique, unless a mount, a lease or a named upper holds it.
The unique parts of all images, what they share counted once, and what nobody needs are the objects,
indexes, splits and blobs. Changes nothing; beside imports and removals it is a picture that moves.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from layerstore import in_use
from layerstore.collect import (
    BLOBS,
    IMAGES,
    LAYERS,
    SPLIT_SUFFIX,
    blob_path,
    index_path,
    objects_of,
    split_path,
)
from layerstore.objects import QUARANTINE, relative_path
from layerstore.room import RESERVE
from layerstore.store import Image, Store

PARTS = (
    *("objects", "indexes", "splits", "blobs", "database", "uppers", "quarantine", "unfinished"),
    *("reserve", "directories", "other"),
)


class Size(NamedTuple):
    """In bytes: of what is in files, and of the blocks they take."""

    apparent: int = 0
    disk: int = 0

    def plus(self, other: Size) -> Size:
        """Both together."""
        return Size(self.apparent + other.apparent, self.disk + other.disk)

    def minus(self, other: Size) -> Size:
        """Without the other."""
        return Size(self.apparent - other.apparent, self.disk - other.disk)


_NOTHING = Size()


@dataclass(slots=True)
class ImageUsage:
    """See the module. `held_by`: why removing the image would give nothing back, in a word or
    two."""

    image: Image
    total: Size = _NOTHING
    unique: Size = _NOTHING
    held_by: str | None = None

    @property
    def shared(self) -> Size:
        """What other images need as well."""
        return self.total.minus(self.unique)

    @property
    def reclaimable(self) -> Size:
        """What removing the image now would give back."""
        return Size() if self.held_by else self.unique


@dataclass(slots=True)
class Usage:
    """`parts`: by name. `shared`: what several images need, once. `unneeded`: what a collection
    would delete. `content_bytes`: of the files of all layers of all images, as often as they are in
    them."""

    parts: dict[str, Size]
    images: list[ImageUsage] = field(default_factory=list)
    shared: Size = _NOTHING
    unneeded: Size = _NOTHING
    content_bytes: int = 0

    @property
    def total(self) -> Size:
        """Of the store's directory."""
        return _sum(self.parts.values())

    @property
    def kept_bytes(self) -> int:
        """In objects, indexes, splits and blobs."""
        return sum(self.parts[name].apparent for name in ("objects", "indexes", "splits", "blobs"))

    @property
    def ratio(self) -> float:
        """How many times smaller than `content_bytes` the files are that hold it; 0 for nothing."""
        return self.content_bytes / self.kept_bytes if self.kept_bytes else 0.0


def usage(store: Store) -> Usage:
    """Measure a store.

    Raises:
        StoreError: an index or a split cannot be read.
    """
    found = Usage(dict.fromkeys(PARTS, _NOTHING))
    files: dict[bytes, Size] = {}
    seen: set[tuple[int, int]] = set()
    for path, status in _walk(store.root):
        # du(1) counts an inode once, and so does the disk.
        inode = (status.st_dev, status.st_ino)
        size = Size() if inode in seen else Size(status.st_size, status.st_blocks * 512)
        seen.add(inode)
        name = _part(path, status)
        found.parts[name] = found.parts[name].plus(size)
        if name in ("objects", "indexes", "splits", "blobs"):
            files[path] = size
    _add_images(store, found, files)
    return found


def _walk(root: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Everything in the store by its path below it, and itself as b""."""
    yield b"", os.lstat(root)
    waiting = [b""]
    while waiting:
        directory = waiting.pop()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for name in os.listdir(os.path.join(root, directory)):
                path = os.path.join(directory, name)
                with contextlib.suppress(FileNotFoundError):
                    status = os.lstat(os.path.join(root, path))
                    yield path, status
                    if stat.S_ISDIR(status.st_mode):
                        waiting.append(path)


def _part(path: bytes, status: os.stat_result) -> str:
    top, _, rest = path.partition(b"/")
    if top in (b"uppers", b"tmp", QUARANTINE) and rest:
        return {b"uppers": "uppers", b"tmp": "unfinished"}.get(top, "quarantine")
    if stat.S_ISDIR(status.st_mode):
        return "directories"
    if top in (LAYERS, IMAGES):
        return "splits" if path.endswith(SPLIT_SUFFIX) else "indexes"
    if top.startswith(b"refs.sqlite"):
        return "database"
    return {b"objects": "objects", BLOBS: "blobs", RESERVE: "reserve"}.get(top, "other")


def _add_images(store: Store, found: Usage, files: dict[bytes, Size]) -> None:
    layers = {
        row.diff_id: _files_of_layer(store.root, row.diff_id) for row in store.refs().layers()
    }
    blobs: dict[str, list[bytes]] = {}
    for blob in store.refs().blobs():
        path = os.path.relpath(blob_path(store.root, blob.digest), store.root)
        blobs.setdefault(blob.image_id, []).append(path)
    # Whose a file is: an image's number; -1: several images'.
    owners: dict[bytes, int] = {}
    for number, image in enumerate(store.images()):
        needed = {os.path.relpath(image.image_index, store.root), *blobs.get(image.id, [])}
        for row in image.layers:
            needed |= layers[row.diff_id]
        for path in needed:
            owners[path] = number if path not in owners else -1
        total = _sum(files.get(path, Size()) for path in needed)
        found.images.append(ImageUsage(image, total, held_by=_holder(store, image)))
        found.content_bytes += image.size
    for path, size in files.items():
        owner = owners.get(path)
        if owner is None:
            found.unneeded = found.unneeded.plus(size)
        elif owner < 0:
            found.shared = found.shared.plus(size)
        else:
            found.images[owner].unique = found.images[owner].unique.plus(size)


def _files_of_layer(root: bytes, diff_id: str) -> set[bytes]:
    """What a layer needs, by path below the store. Its image's index names no further objects."""
    index, split = index_path(root, LAYERS, diff_id), split_path(root, diff_id)
    keys = objects_of(index)
    with contextlib.suppress(FileNotFoundError):  # a layer from before there were splits
        keys |= objects_of(split)
    paths = {b"objects/" + relative_path("sha256:" + key.hex()) for key in keys}
    return paths | {os.path.relpath(index, root), os.path.relpath(split, root)}


def _holder(store: Store, image: Image) -> str | None:
    if any(lease.image_id == image.id for lease in store.leases.all()):
        return "a lease"
    if image.id in store.uppers().values():
        return "a named upper"
    try:
        held = in_use.claim(image.image_index)
    except OSError:
        return None
    if held is None:
        return "a mount"
    os.close(held)
    return None


def _sum(sizes: Iterable[Size]) -> Size:
    total = Size()
    for size in sizes:
        total = total.plus(size)
    return total
