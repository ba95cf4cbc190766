"""Writes an image into an OCI image layout: a directory, a directory that has images, an archive.

Source: OCI image spec, image-layout.md.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any, Protocol

from layerstore import digests
from layerstore.errors import StoreError, show
from layerstore.export.archive import Archive, copy
from layerstore.export.layers import Blob
from layerstore.export.output import hidden_directory, new_directory, sync_directory
from layerstore.objects import sync_files
from layerstore.oci.files import DirectoryFiles, read_limited
from layerstore.oci.image import parse_object
from layerstore.oci.manifests import Descriptor, layer_descriptor, manifest_for, media_type

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_REF_NAME = "org.opencontainers.image.ref.name"
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


class Blobs(Protocol):
    """Where blobs go."""

    def add(self, blob: Blob) -> Descriptor:
        """Add a layer; returns its descriptor."""
        ...

    def add_bytes(self, data: bytes) -> None:
        """Add a blob that is in memory."""
        ...


def add_image(
    blobs: Blobs,
    config: bytes,
    manifest: bytes,
    layers: list[tuple[str, Blob]],
    reference: str | None,
) -> Descriptor:
    """Add the blobs of an image; returns the descriptor of its manifest, for the index.

    Args:
        config: the image's.
        manifest: the one it came with; empty: none.
        layers: bottom first: the diff id, and the blob.
        reference: what the image is called in the index.
    """
    done: dict[tuple[str, str], Descriptor] = {}
    descriptors = []
    for diff_id, blob in layers:
        key = (diff_id, blob.descriptor["digest"] if blob.descriptor else blob.method)
        if key not in done:
            done[key] = blobs.add(blob)
        descriptors.append(blob.descriptor or done[key])
    blobs.add_bytes(config)
    manifest = manifest_for(config, manifest, descriptors)
    blobs.add_bytes(manifest)
    descriptor: Descriptor = {
        "mediaType": media_type(manifest),
        "digest": digests.of_bytes(manifest),
        "size": len(manifest),
    }
    if reference is not None:
        descriptor["annotations"] = {_REF_NAME: reference}
    return descriptor


def _blob_name(digest: str) -> str:
    return f"blobs/sha256/{digests.hex_of(digest)}"


def _described(blob: Blob, digest: str, size: int) -> Descriptor:
    """The descriptor of a blob that was written.

    Raises:
        StoreError: it is not the one that was meant.
    """
    found = blob.descriptor or layer_descriptor(digest, size, blob.method)
    if (found["digest"], found["size"]) != (digest, size):
        raise StoreError(
            f"the manifest of the image says that blob {found['digest']} has {found['size']} bytes;"
            f" it has {size}: --compress makes another manifest"
        )
    return found


# --- directories


class LayoutDirectory:
    """A layout in a directory.

    Args:
        layout: the directory, which is empty or has images.
        waiting: an empty directory on the same filesystem, where blobs wait for all to be there.

    Raises:
        StoreError: something else is in it.
    """

    def __init__(self, layout: bytes, waiting: bytes) -> None:
        self._layout = layout
        self._waiting = waiting
        self._paths: dict[str, bytes] = {}
        self._read_index()

    def add(self, blob: Blob) -> Descriptor:
        """As in `Blobs`."""
        path = self._next()
        with open(path, "xb") as file:
            digest, size = copy(blob.chunks(), file)
        self._paths[digest] = path
        return _described(blob, digest, size)

    def add_bytes(self, data: bytes) -> None:
        """As in `Blobs`."""
        path = self._next()
        with open(path, "xb") as file:
            file.write(data)
        self._paths[digests.of_bytes(data)] = path

    def _next(self) -> bytes:
        return os.path.join(self._waiting, b"%d" % len(os.listdir(self._waiting)))

    def finish(self, descriptor: Descriptor) -> None:
        """Give the blobs their names and the image its own. Nobody else may do so meanwhile.

        Args:
            descriptor: of the image's manifest.
        """
        # Blobs first: what the index names is there.
        sync_files(list(self._paths.values()), self._waiting)
        parent = os.path.join(self._layout, b"blobs/sha256")
        os.makedirs(parent, exist_ok=True)
        for digest, path in self._paths.items():
            os.rename(path, os.path.join(self._layout, _blob_name(digest).encode()))
        sync_directory(parent)
        index = self._read_index()
        known = [m for m in index["manifests"] if not _is_replaced(m, descriptor)]
        index["manifests"] = [*known, descriptor]
        if not os.path.exists(os.path.join(self._layout, b"oci-layout")):
            self._write(b"oci-layout", _LAYOUT)
        self._write(b"index.json", _json(index))
        sync_directory(self._layout)

    def _read_index(self) -> dict[str, Any]:
        files = DirectoryFiles(self._layout)
        if not os.path.exists(os.path.join(self._layout, b"oci-layout")):
            return {"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": []}
        index = parse_object(
            read_limited(files, "index.json", "index.json"), f"{files.label}: index.json"
        )
        if not isinstance(index.get("manifests"), list):
            raise StoreError(f"{files.label}: index.json has no list of manifests")
        return index

    def _write(self, name: bytes, data: bytes) -> None:
        path = os.path.join(self._waiting, name)
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(path, os.path.join(self._layout, name))


@contextlib.contextmanager
def new_layout(path: bytes) -> Iterator[LayoutDirectory]:
    """A layout that appears under its name once it is whole."""
    with new_directory(path) as directory:
        waiting = os.path.join(directory, b"waiting")
        os.mkdir(waiting)
        yield LayoutDirectory(directory, waiting)
        os.rmdir(waiting)


@contextlib.contextmanager
def known_layout(path: bytes) -> Iterator[LayoutDirectory]:
    """A layout that has images already.

    Raises:
        StoreError: the directory is something else.
    """
    if not os.path.exists(os.path.join(path, b"oci-layout")):
        raise StoreError(f"{show(path)}: is neither empty nor an OCI image layout")
    with hidden_directory(path) as waiting:
        yield LayoutDirectory(path, waiting)


def _is_replaced(known: Any, new: Descriptor) -> bool:
    """Whether an entry of an index gives way to another: a tag means one image."""
    if not isinstance(known, dict):
        return False
    annotations = known.get("annotations")
    name = annotations.get(_REF_NAME) if isinstance(annotations, dict) else None
    wanted = new.get("annotations", {}).get(_REF_NAME)
    if name is None and wanted is None:
        return bool(known.get("digest") == new["digest"])
    return name is not None and name == wanted


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


# --- archives


class LayoutArchive:
    """A layout in an archive.

    Args:
        archive: a new one.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._have: set[str] = set()
        archive.add("oci-layout", _LAYOUT)

    def add(self, blob: Blob) -> Descriptor:
        """As in `Blobs`."""
        if blob.descriptor is not None:
            return self._add(blob, blob.descriptor, blob.chunks())
        with self._archive.made(blob.chunks()) as (digest, size, chunks):
            return self._add(blob, layer_descriptor(digest, size, blob.method), chunks)

    def _add(self, blob: Blob, wanted: Descriptor, chunks: Iterator[bytes]) -> Descriptor:
        if wanted["digest"] not in self._have:
            self._have.add(wanted["digest"])
            name = _blob_name(wanted["digest"])
            digest, size = self._archive.add_stream(name, wanted["size"], chunks)
            _described(blob._replace(descriptor=wanted), digest, size)
        return wanted

    def add_bytes(self, data: bytes) -> None:
        """As in `Blobs`."""
        digest = digests.of_bytes(data)
        if digest not in self._have:
            self._have.add(digest)
            self._archive.add(_blob_name(digest), data)

    def finish(self, descriptor: Descriptor) -> None:
        """Write the index, and the end."""
        index = {"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": [descriptor]}
        self._archive.add("index.json", _json(index))
        self._archive.end()
