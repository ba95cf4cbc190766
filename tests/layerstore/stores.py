"""What the tests of the store share: whether a store is in order, and a small image."""

from __future__ import annotations

import os
from pathlib import Path

from layerstore.check import check
from layerstore.collect import blob_path, objects_of, split_path
from layerstore.store import Image, Store
from tests.layerstore.archives import Item, folder, hard_link, symlink, tar_of

BASE = tar_of(
    [
        folder("etc", 0o755, mtime=1.5),
        Item("etc/hostname", b"base\n"),
        Item("etc/big", b"B" * 5000, mode=0o600, uid=7, gid=8),
        hard_link("etc/big-link", "etc/big"),
        folder("gone"),
        Item("gone/file", b"G" * 3000),
        symlink("link", "etc/big"),
    ]
)
TOP = tar_of(
    [
        Item("etc/hostname", b"top\n"),
        Item("etc/new", b"N" * 6000),
        Item(".wh.gone"),
        Item("etc/copy", b"B" * 5000),
    ]
)


def litter(root: Path) -> list[str]:
    """What is in a store that nothing refers to."""
    found = [f"tmp/{name}" for name in os.listdir(root / "tmp")]
    if not (root / "refs.sqlite").exists():
        return found
    with Store.open(str(root)) as store:
        images = store.images()
        files = {path for image in images for path in (*image.layer_indexes, image.image_index)}
        files |= {split_path(store.root, row.diff_id) for image in images for row in image.layers}
        used: set[bytes] = set()
        for path in files:
            used |= objects_of(path)
        for digest in store.objects():
            if bytes.fromhex(digest[7:]) not in used:
                found.append(digest)
        files |= {blob_path(store.root, blob.digest) for blob in store.refs().blobs()}
    there = [path for kind in ("layers", "images", "blobs") for path in (root / kind).iterdir()]
    return found + [str(path) for path in there if os.fsencode(path) not in files]


def problems(root: Path) -> list[str]:
    """What fsck says, content included."""
    with Store.open(str(root)) as store:
        return [problem.what for problem in check(store, content=True)]


def image_ids(root: Path) -> list[str]:
    """The images of a store that may not be there yet."""
    if not (root / "refs.sqlite").exists():
        return []
    with Store.open(str(root)) as store:
        return [image.id for image in store.images()]


def imported(root: Path, source: str, tag: str | None = None) -> Image:
    """Import into a store that may not be there yet; checks it afterwards."""
    with Store.open(str(root), create=True) as store:
        image = store.import_image(source, tag)
    assert problems(root) == []
    assert litter(root) == []
    return image
