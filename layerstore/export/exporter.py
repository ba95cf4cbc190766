"""One export: the image is claimed, written, and shown under its name."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

from layerstore import digests
from layerstore.collect import IMAGES, LAYERS, index_path
from layerstore.errors import ImageUnknown, StoreError, show
from layerstore.export.archive import Archive
from layerstore.export.destination import Destination, parse_destination
from layerstore.export.docker import write_docker_archive
from layerstore.export.layers import Compression, LayerBlobs
from layerstore.export.layout import Blobs, LayoutArchive, add_image, known_layout, new_layout
from layerstore.export.output import locked, new_directory, new_file, parent_of
from layerstore.export.root import is_whole, root_tar
from layerstore.export.tree import write_tree
from layerstore.importer import Progress
from layerstore.index.reader import Index
from layerstore.objects import Objects
from layerstore.oci.compressing import compress
from layerstore.oci.manifests import Descriptor, listed_layers
from layerstore.refs import LayerRow, Refs, short_id


class Exported(NamedTuple):
    """What was written. `manifest`: its digest, None where the form has none."""

    image_id: str
    manifest: str | None
    is_stream: bool


class _Image(NamedTuple):
    config: bytes
    manifest: bytes
    tags: list[str]
    layers: list[LayerRow]  # bottom first
    merged: Index  # of all layers


class Exporter:
    """Exports one image.

    Args:
        root: of the store.
        refs: its database.
        compression: of the layers, or of a root filesystem's tar; None: as they came where that can
            be, and plain where the form does without.
        force: replace a file that is there.
        progress: told how far it is.
    """

    def __init__(
        self,
        root: bytes,
        refs: Refs,
        compression: Compression | None,
        *,
        force: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._root = root
        self._refs = refs
        self._objects = Objects(os.path.join(root, b"objects"))
        self._compression = compression
        self._force = force
        self._blobs = LayerBlobs(root, refs, compression, progress)

    def run(self, image_id: str, tags: list[str], text: str) -> Exported:
        """Export an image.

        Args:
            image_id: which.
            tags: what it is called, unless the destination says so.
            text: the destination.

        Raises:
            StoreError: it cannot be; nothing was left behind.
        """
        destination = parse_destination(text)
        with _full_disk(destination), self._claimed(image_id, tags) as image:
            manifest = None
            if destination.scheme in ("oci", "oci-archive"):
                manifest = self._layout(destination, image)
            elif destination.scheme == "docker-archive":
                self._docker(destination, image)
            elif destination.scheme == "tar":
                self._tar(destination, image)
            else:
                self._directory(destination, image)
            return Exported(image_id, manifest, destination.is_stream)

    @contextlib.contextmanager
    def _claimed(self, image_id: str, tags: list[str]) -> Iterator[_Image]:
        """The image, which is not removed while the context lasts."""
        gone = ImageUnknown(f"image {short_id(image_id)} was removed meanwhile: import it again")
        rows = self._refs.images_by_prefix(digests.hex_of(image_id))
        if not rows:
            raise gone
        with Index(index_path(self._root, IMAGES, rows[0].chain_id)) as index:
            # Had it been removed before it was claimed, its row would be gone.
            if not self._refs.images_by_prefix(digests.hex_of(image_id)):
                raise gone
            layers = self._refs.image_layers(image_id)
            yield _Image(rows[0].config, rows[0].manifest, tags, layers, index)

    # --- forms

    def _layout(self, destination: Destination, image: _Image) -> str:
        path = destination.path
        if destination.scheme == "oci-archive":
            with self._archive(destination) as archive:
                written = LayoutArchive(archive)
                descriptor = self._add(written, destination, image)
                written.finish(descriptor)
        elif os.path.isdir(path) and os.listdir(path):
            with known_layout(path) as layout:
                descriptor = self._add(layout, destination, image)
                with locked(path):
                    layout.finish(descriptor)
        else:
            with new_layout(path) as layout:
                descriptor = self._add(layout, destination, image)
                layout.finish(descriptor)
        digest: str = descriptor["digest"]
        return digest

    def _add(self, blobs: Blobs, destination: Destination, image: _Image) -> Descriptor:
        names = [destination.reference] if destination.reference else image.tags
        listed = listed_layers(image.manifest, len(image.layers))
        layers = [
            (layer.diff_id, self._blobs.blob(layer, known))
            for layer, known in zip(image.layers, listed, strict=True)
        ]
        reference = names[0] if names else None
        return add_image(blobs, image.config, image.manifest, layers, reference)

    def _docker(self, destination: Destination, image: _Image) -> None:
        names = [destination.reference] if destination.reference else image.tags
        compression = self._compression or Compression("none")
        layers = [(layer, self._blobs.anew(layer, compression)) for layer in image.layers]
        with self._archive(destination) as archive:
            write_docker_archive(archive, image.config, layers, names)

    @contextlib.contextmanager
    def _archive(self, destination: Destination) -> Iterator[Archive]:
        with new_file(destination.path, force=self._force) as file:
            yield Archive(file, None if destination.is_stream else parent_of(destination.path))

    def _tar(self, destination: Destination, image: _Image) -> None:
        method, level = self._compression or Compression("none")
        with new_file(destination.path, force=self._force) as file:
            for chunk in compress(self._root_tar(image), method, level):
                file.write(chunk)

    def _root_tar(self, image: _Image) -> Iterator[bytes]:
        if len(image.layers) == 1:
            with Index(index_path(self._root, LAYERS, image.layers[0].diff_id)) as layer:
                whole = is_whole(layer)
            if whole:
                return self._blobs.tar(image.layers[0])
        return root_tar(image.merged, self._objects)

    def _directory(self, destination: Destination, image: _Image) -> None:
        if self._compression is not None and self._compression.method != "none":
            raise StoreError("dir: holds plain files: leave --compress out")
        with new_directory(destination.path) as directory:
            write_tree(image.merged, self._objects, directory, destination.path)


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
