"""fsck: whether the store holds what its images need.

Compares every index with the digest it had when it was made, reads every split, and looks for every
object that one of them refers to, and for the blobs that were kept; with `content`, reads objects
and blobs too. Changes nothing. Beside imports and removals it may report what is just coming or
going.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from layerstore import digests
from layerstore.collect import IMAGES, LAYERS, blob_path, index_path, objects_of, split_path
from layerstore.errors import ObjectCorrupt, ObjectMissing, SplitMissing, StoreError, show
from layerstore.objects import Objects
from layerstore.refs import LayerRow
from layerstore.store import Image, Store


class Problem(NamedTuple):
    """What is wrong, and the images it hurts."""

    what: str
    images: list[str]


def check(store: Store, *, content: bool = False) -> Iterator[Problem]:
    """What is wrong with a store.

    Args:
        content: also read all objects and blobs and compare them with their names.
    """
    images = store.images()
    refs = store.refs()
    needed: dict[bytes, list[str]] = {}
    for layer in refs.layers():
        users = [i.name for i in images if layer in i.layers]
        path = index_path(store.root, LAYERS, layer.diff_id)
        yield from _check_index(path, layer.index_digest, users, needed)
        yield from _check_split(split_path(store.root, layer.diff_id), layer, users, needed)
    for chain, digest in refs.chains().items():
        users = [image.name for image in images if image.chain_id == chain]
        yield from _check_index(index_path(store.root, IMAGES, chain), digest, users, needed)
    yield from _check_objects(store.objects(), needed, content)
    yield from _check_blobs(store, images, content)
    yield from _check_uppers(store, images)


def _check_index(
    path: bytes, digest: str, users: list[str], needed: dict[bytes, list[str]]
) -> Iterator[Problem]:
    try:
        with open(path, "rb", buffering=0) as file:
            found, _ = digests.of_stream(file)
        if found != digest:
            yield Problem(f"{show(path)}: the index is damaged", users)
            return
        _note(objects_of(path), users, needed)
    except FileNotFoundError:
        yield Problem(f"{show(path)}: the index is missing", users)
    except (OSError, StoreError) as error:
        yield Problem(str(error), users)


def _check_split(
    path: bytes, layer: LayerRow, users: list[str], needed: dict[bytes, list[str]]
) -> Iterator[Problem]:
    from layerstore.split import read_split

    try:
        split = read_split(path)
        if (split.diff_id, split.size) != (layer.diff_id, layer.tar_size):
            yield Problem(f"{show(path)}: is of another layer", users)
        _note(split.objects, users, needed)
    except FileNotFoundError:
        yield Problem(str(SplitMissing(path)), users)
    except (OSError, StoreError) as error:
        yield Problem(str(error), users)


def _note(objects: set[bytes], users: list[str], needed: dict[bytes, list[str]]) -> None:
    for key in objects:
        known = needed.setdefault(key, [])
        known += [name for name in users if name not in known]


def _check_objects(
    objects: Objects, needed: dict[bytes, list[str]], content: bool
) -> Iterator[Problem]:
    for key, users in sorted(needed.items()):
        digest = "sha256:" + key.hex()
        try:
            if content:
                objects.verify(digest)
            elif not objects.has(digest):
                raise ObjectMissing(digest)
        except (ObjectMissing, ObjectCorrupt, OSError) as error:
            yield Problem(str(error), users)


def _check_blobs(store: Store, images: list[Image], content: bool) -> Iterator[Problem]:
    names = {image.id: image.name for image in images}
    users: dict[tuple[str, int], list[str]] = {}
    for blob in store.refs().blobs():
        users.setdefault((blob.digest, blob.size), []).append(names.get(blob.image_id, ""))
    for (digest, size), its_users in users.items():
        path = blob_path(store.root, digest)
        try:
            found = (digest, os.stat(path).st_size)
            if content:
                with open(path, "rb", buffering=0) as file:
                    found = digests.of_stream(file)
            if found != (digest, size):
                yield Problem(f"{show(path)}: the kept blob is damaged", its_users)
        except FileNotFoundError:
            yield Problem(f"{show(path)}: the kept blob is missing", its_users)
        except OSError as error:
            yield Problem(str(error), its_users)


def _check_uppers(store: Store, images: list[Image]) -> Iterator[Problem]:
    names = {image.id: image.name for image in images}
    for name, image_id in store.uppers().items():
        directory = os.path.join(store.root, b"uppers", name.encode())
        for part in (b"upper", b"work"):
            with contextlib.suppress(OSError):
                if os.path.isdir(os.path.join(directory, part)):
                    continue
            yield Problem(
                f"{show(os.path.join(directory, part))}: missing", [names.get(image_id, image_id)]
            )
