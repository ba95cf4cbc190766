"""What whole-file deduplication can do at best, from the images' tars alone, without the store's code."""

import hashlib
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.family.archives import identity, layer_blobs

BLOCK = 4096


def rounded(size: int) -> int:
    """Bytes that a file of `size` occupies in blocks of 4 KiB."""
    return -(-size // BLOCK) * BLOCK


@dataclass(slots=True)
class Floor:
    """Counts over a set of images; all sizes in bytes.

    `tars` of all images, `unique_tars` with each layer once; `files` and `file_bytes` are the regular
    files of unique layers, hard links once; `contents` has the size of each distinct content.
    """

    images: int = 0
    layers: int = 0
    tars: int = 0
    unique_tars: int = 0
    files: int = 0
    file_bytes: int = 0
    contents: dict[bytes, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Every distinct content once."""
        return sum(self.contents.values())

    @property
    def rounded_bytes(self) -> int:
        """The same in whole blocks."""
        return sum(map(rounded, self.contents.values()))


def measure(layout: Path, tags: Iterable[str]) -> Floor:
    """Reads every layer of the images of an OCI layout."""
    floor = Floor()
    sizes: dict[str, int] = {}
    for tag in tags:
        floor.images += 1
        _, diff_ids = identity(layout, tag)
        for diff_id, blob in zip(diff_ids, layer_blobs(layout, tag), strict=True):
            if diff_id not in sizes:
                sizes[diff_id] = _add(floor, blob)
                floor.layers += 1
                floor.unique_tars += sizes[diff_id]
            floor.tars += sizes[diff_id]
    return floor


def _add(floor: Floor, blob: Path) -> int:
    """Counts one layer; returns the bytes of its tar."""
    with tarfile.open(blob, "r:*") as archive:
        for member in archive:
            if not member.isreg() or Path(member.name).name.startswith(".wh."):
                continue
            content = archive.extractfile(member)
            assert content is not None
            hasher = hashlib.sha256()
            while piece := content.read(1 << 20):
                hasher.update(piece)
            floor.files += 1
            floor.file_bytes += member.size
            floor.contents[hasher.digest()] = member.size
        assert archive.fileobj is not None
        while archive.fileobj.read(1 << 20):
            pass
        return archive.fileobj.tell()
