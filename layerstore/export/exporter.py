"""One export: the image is claimed, written, and shown under its name."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

from layerstore import digests
from layerstore.errors import ImageUnknown, StoreError, show
from layerstore.export.destination import Destination, parse_destination
from layerstore.export.docker import docker_archive
from layerstore.export.layers import Compression, LayerBlobs
from layerstore.export.layout import ArchiveBlobs, Blobs, add_image, known_layout, new_layout
from layerstore.export.output import locked, new_directory, new_file, parent_of
from layerstore.export.root import is_whole, root_tar
from layerstore.export.tree import TreeWriter
from layerstore.importer import Progress
from layerstore.index.reader import Index
from layerstore.oci.compressing import LEVELS, METHODS, compress
from layerstore.oci.manifests import Descriptor, listed_layers
from layerstore.refs import ImageRow
from layerstore.store import Image, Store


class Exported(NamedTuple):
    """What was written. `manifest`: its digest, None where the form has none."""

    image_id: str
    manifest: str | None
    is_stream: bool


class Exporter:
    """Exports one image.

    Args:
        store: where it is.
        compression: of the layers, or of the whole where the form has no compressed layers; None:
            as they came.
        force: replace a file that is there.
        progress: told how far it is.
    """

    def __init__(
        self,
        store: Store,
        compression: Compression | None,
        *,
        force: bool = False,
        progress: Progress | None = None,
    ) -> None:
        _check(compression)
        self._store = store
        self._compression = compression
        self._force = force
        self._blobs = LayerBlobs(store, compression, progress)

    def run(self, name: str, text: str) -> Exported:
        """Export the image called `name` to the destination `text`.

        Raises:
            StoreError: it cannot be; nothing was left behind.
        """
        destination = parse_destination(text)
        with _full_disk(destination), self._claimed(name) as (image, row):
            manifest = None
            if destination.scheme in ("oci", "oci-archive"):
                manifest = self._layout(destination, image, row)
            elif destination.scheme == "dir":
                self._directory(destination, image)
            else:
                chunks = (
                    self._docker(destination, image, row)
                    if destination.scheme == "docker-archive"
                    else self._root(image)
                )
                method, level = self._compression or Compression("none")
                with new_file(destination.path, force=self._force) as file:
                    for chunk in compress(chunks, method, level):
                        file.write(chunk)
            return Exported(image.id, manifest, destination.is_stream)

    @contextlib.contextmanager
    def _claimed(self, name: str) -> Iterator[tuple[Image, ImageRow]]:
        """The image, which is not removed while the context lasts."""
        image = self._store.resolve(name)
        with Index(image.image_index):
            # Had it been removed before it was claimed, its row would be gone.
            rows = self._store.refs().images_by_prefix(digests.hex_of(image.id))
            if not rows:
                raise ImageUnknown(f"{show(name)}: was removed meanwhile: import it again")
            yield image, rows[0]

    # --- forms

    def _layout(self, destination: Destination, image: Image, row: ImageRow) -> str:
        path = destination.path
        names = [destination.reference] if destination.reference else image.tags
        reference = names[0] if names else None
        if destination.scheme == "oci-archive":
            with new_file(path, force=self._force) as file:
                spool = None if destination.is_stream else parent_of(path)
                archive = ArchiveBlobs(file, spool)
                descriptor = self._add(archive, image, row, reference)
                archive.finish(descriptor)
        elif os.path.isdir(path) and os.listdir(path):
            with known_layout(path) as layout:
                descriptor = self._add(layout, image, row, reference)
                with locked(path):
                    layout.finish(descriptor)
        else:
            with new_layout(path) as layout:
                descriptor = self._add(layout, image, row, reference)
                layout.finish(descriptor)
        digest: str = descriptor["digest"]
        return digest

    def _add(self, blobs: Blobs, image: Image, row: ImageRow, reference: str | None) -> Descriptor:
        listed = listed_layers(row.manifest, len(image.layers))
        layers = [
            (layer.diff_id, self._blobs.blob(layer, known))
            for layer, known in zip(image.layers, listed, strict=True)
        ]
        return add_image(blobs, row.config, row.manifest, layers, reference)

    def _docker(self, destination: Destination, image: Image, row: ImageRow) -> Iterator[bytes]:
        names = [destination.reference] if destination.reference else image.tags
        return docker_archive(row.config, image.layers, self._blobs.tar, names)

    def _root(self, image: Image) -> Iterator[bytes]:
        if len(image.layers) == 1:
            with Index(image.layer_indexes[0]) as layer:
                whole = is_whole(layer)
            if whole:
                yield from self._blobs.tar(image.layers[0])
                return
        with Index(image.image_index) as index:
            yield from root_tar(index, self._store.objects())

    def _directory(self, destination: Destination, image: Image) -> None:
        if self._compression is not None and self._compression.method != "none":
            raise StoreError("dir: holds plain files: leave --compress out")
        with (
            Index(image.image_index) as index,
            new_directory(destination.path) as directory,
        ):
            TreeWriter(index, self._store.objects(), directory, destination.path).write()


def _check(compression: Compression | None) -> None:
    if compression is None:
        return
    method, level = compression
    if method not in METHODS:
        raise StoreError(f"compression {show(method)}: known are {', '.join(METHODS)}")
    levels = LEVELS.get(method)
    if level is not None and (levels is None or level not in levels):
        allowed = f"has levels {levels[0]} to {levels[-1]}" if levels else "has no levels"
        raise StoreError(f"compression {method} {allowed}, not {level}")


@contextlib.contextmanager
def _full_disk(destination: Destination) -> Iterator[None]:
    """Say it in the store's words when the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StoreError(
            f"{show(destination.path)}: no space left: nothing was exported; free some and try again"
        ) from None
