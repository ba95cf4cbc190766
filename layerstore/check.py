"""fsck: whether the store holds what its images need, in its structure and references.

Compares every index with the digest it had when it was made, reads every split, and looks for every
object that one of them refers to, of the size it must have, and for the blobs that were kept; asks
SQLite about the database. What is in the objects is `scrub`'s subject. Changes nothing. Beside
imports and removals it may report what is just coming or going.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from layerstore import digests
from layerstore.collect import IMAGES, LAYERS, blob_path, index_path, sizes_of, split_path
from layerstore.errors import ObjectCorrupt, ObjectMissing, SplitMissing, StoreError, show
from layerstore.objects import Objects
from layerstore.refs import LayerRow
from layerstore.store import Image, Store


class Problem(NamedTuple):
    """What is wrong, and the images it hurts; `digest` where it is one object or blob."""

    what: str
    images: list[str]
    digest: str | None = None


@dataclass(slots=True)
class Need:
    """An object that something refers to: its size in bytes, None where only splits do, and the
    names of the images that have it."""

    size: int | None = None
    images: tuple[str, ...] = ()


@dataclass(slots=True)
class Survey:
    """All that the rows of a store refer to.

    `needs`: objects by the 32 bytes of their digest. `indexes`, `splits`: the layers whose file is
    damaged or missing, by diff id; `chains`: the image indexes, by chain id.
    """

    problems: list[Problem] = field(default_factory=list)
    needs: dict[bytes, Need] = field(default_factory=dict)
    indexes: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    chains: list[str] = field(default_factory=list)
    layers_of: dict[bytes, tuple[str, ...]] = field(default_factory=dict)
    """The layers that refer to an object, by diff id."""

    @property
    def content_bytes(self) -> int:
        """Of all objects that are needed."""
        return sum(need.size or 0 for need in self.needs.values())


def check(store: Store, *, content: bool = False, found: Survey | None = None) -> Iterator[Problem]:
    """What is wrong with a store.

    Args:
        content: also read all objects and blobs and compare them with their names.
        found: what `survey` has just said, where the caller has asked it.
    """
    if found is None:
        found = survey(store)
    for line in store.refs().problems():
        yield Problem(f"{show(store.root)}: the database is damaged: {line}", [])
    yield from found.problems
    objects = store.objects()
    for key, need in sorted(found.needs.items()):
        yield from _check_object(objects, "sha256:" + key.hex(), need, content)
    yield from check_blobs(store, content=content)
    yield from _check_uppers(store, store.images())


def survey(store: Store) -> Survey:
    """Read every index and split that the rows name."""
    found = Survey()
    images = store.images()
    refs = store.refs()
    for layer in refs.layers():
        users = [i.name for i in images if layer in i.layers]
        path = index_path(store.root, LAYERS, layer.diff_id)
        sizes = _read_index(path, layer.index_digest, users, found)
        if sizes is None:
            found.indexes.append(layer.diff_id)
        keys = _read_split(split_path(store.root, layer.diff_id), layer, users, found)
        if keys is None:
            found.splits.append(layer.diff_id)
        more = _Shared((layer.diff_id,))
        for key in {*(sizes or ()), *(keys or ())}:
            found.layers_of[key] = more.after(found.layers_of.get(key, ()))
    for chain, digest in refs.chains().items():
        users = [image.name for image in images if image.chain_id == chain]
        path = index_path(store.root, IMAGES, chain)
        if _read_index(path, digest, users, found) is None:
            found.chains.append(chain)
    return found


def _read_index(
    path: bytes, digest: str, users: list[str], found: Survey
) -> dict[bytes, int] | None:
    try:
        with open(path, "rb", buffering=0) as file:
            actual, _ = digests.of_stream(file)
        if actual == digest:
            sizes = sizes_of(path)
            _note(sizes, users, found)
            return sizes
        problem = f"{show(path)}: the index is damaged"
    except FileNotFoundError:
        problem = f"{show(path)}: the index is missing"
    except (OSError, StoreError) as error:
        problem = str(error)
    found.problems.append(Problem(problem, users))
    return None


def _read_split(path: bytes, layer: LayerRow, users: list[str], found: Survey) -> set[bytes] | None:
    from layerstore.split import read_split

    try:
        split = read_split(path)
        if (split.diff_id, split.size) == (layer.diff_id, layer.tar_size):
            _note(dict.fromkeys(split.objects), users, found)
            return split.objects
        problem = f"{show(path)}: is of another layer"
    except FileNotFoundError:
        problem = str(SplitMissing(path))
    except (OSError, StoreError) as error:
        problem = str(error)
    found.problems.append(Problem(problem, users))
    return None


def _note(sizes: dict[bytes, int] | dict[bytes, None], users: list[str], found: Survey) -> None:
    more = _Shared(tuple(users))
    for key, size in sizes.items():
        need = found.needs.get(key)
        if need is None:
            need = found.needs[key] = Need()
        need.size = need.size if size is None else size
        need.images = more.after(need.images)


class _Shared:
    """Names to be added to those that many objects have, most of them the same: one tuple for each
    combination, where a list for each object took most of the memory."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._known: dict[tuple[str, ...], tuple[str, ...]] = {}

    def after(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those and these."""
        joined = self._known.get(names)
        if joined is None:
            joined = tuple(dict.fromkeys((*names, *self._names)))
            self._known[names] = joined
        return joined


def _check_object(objects: Objects, digest: str, need: Need, content: bool) -> Iterator[Problem]:
    try:
        if content:
            objects.verify(digest)
        size = os.stat(objects.path(digest)).st_size
        if need.size is not None and size != need.size:
            what = f"object {digest} is damaged: it has {size} bytes, not {need.size}"
            yield Problem(what, list(need.images), digest)
    except FileNotFoundError:
        yield Problem(str(ObjectMissing(digest)), list(need.images), digest)
    except (ObjectMissing, ObjectCorrupt, OSError) as error:
        yield Problem(str(error), list(need.images), digest)


def check_blobs(store: Store, *, content: bool) -> Iterator[Problem]:
    """What is wrong with the kept blobs.

    Args:
        content: also read them and compare them with their names.
    """
    names = {image.id: image.name for image in store.images()}
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
                yield Problem(f"{show(path)}: the kept blob is damaged", its_users, digest)
        except FileNotFoundError:
            yield Problem(f"{show(path)}: the kept blob is missing", its_users, digest)
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
