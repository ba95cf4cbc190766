"""The blobs of an image's layers as they leave the store, each checked while it is read."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from layerstore import collect
from layerstore.errors import StoreError, show
from layerstore.importer import Progress
from layerstore.layer_tar import LayerTar
from layerstore.objects import Objects
from layerstore.oci.compressing import LEVELS, METHODS, compress
from layerstore.oci.manifests import Descriptor, layer_descriptor, method_of
from layerstore.refs import LayerRow, Refs

CHUNK_SIZE = 1 << 20


class Compression(NamedTuple):
    """How to compress: one of `compressing.METHODS`, and a level, None: the usual one."""

    method: str
    level: int | None = None


class Blob(NamedTuple):
    """A blob that leaves. `descriptor`: None until its bytes are made, where those depend on a
    compressor. `chunks`: makes them."""

    chunks: Callable[[], Iterator[bytes]]
    method: str
    descriptor: Descriptor | None


class LayerBlobs:
    """Chooses the form of each layer.

    Args:
        root: of the store.
        refs: its database.
        compression: for all of them; None: as they came where that can be, else compressed as they
            were, and with gzip where that is not known.
        progress: told how far it is.

    Raises:
        StoreError: there is no such compression.
    """

    def __init__(
        self,
        root: bytes,
        refs: Refs,
        compression: Compression | None,
        progress: Progress | None,
    ) -> None:
        _check(compression)
        self._root = root
        self._objects = Objects(os.path.join(root, b"objects"))
        self._compression = compression
        self._progress = progress
        self._kept = {blob.digest: blob.size for blob in refs.blobs()}

    def blob(self, layer: LayerRow, listed: Descriptor | None) -> Blob:
        """The form a layer leaves in.

        Args:
            layer: which.
            listed: its descriptor in the manifest that the image came with, if it had one.
        """
        compression = self._compression
        if listed is not None and compression is None:
            if listed["digest"] == layer.diff_id:
                return Blob(lambda: self.tar(layer), "none", listed)
            if self._kept.get(listed["digest"]) == listed["size"]:
                return Blob(lambda: self._verbatim(listed), method_of(listed), listed)
            compression = Compression(method_of(listed))
        return self.anew(layer, compression or Compression("gzip"))

    def anew(self, layer: LayerRow, compression: Compression) -> Blob:
        """A layer compressed as asked, whatever it came as."""
        method, level = compression
        descriptor = None
        if method == "none":
            descriptor = layer_descriptor(layer.diff_id, layer.tar_size, method)
        return Blob(lambda: compress(self.tar(layer), method, level), method, descriptor)

    def tar(self, layer: LayerRow) -> Iterator[bytes]:
        """The plain tar of a layer.

        Raises:
            SplitCorrupt, SplitMissing, ObjectCorrupt, ObjectMissing: it cannot be rebuilt.
        """
        path = collect.split_path(self._root, layer.diff_id)
        with LayerTar(self._objects, path, layer.diff_id, layer.tar_size) as tar:
            yield from self._told(tar.chunks(), layer.diff_id, layer.tar_size)

    def _verbatim(self, listed: Descriptor) -> Iterator[bytes]:
        path = collect.blob_path(self._root, listed["digest"])
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(open(path, "rb", buffering=0))
            except FileNotFoundError:
                raise self._damaged(path, "is missing") from None
            chunks = self._checked(file, path, listed["digest"])
            yield from self._told(chunks, listed["digest"], listed["size"])

    def _checked(self, file: BinaryIO, path: bytes, digest: str) -> Iterator[bytes]:
        hasher = hashlib.sha256()
        last = b""
        while data := file.read(CHUNK_SIZE):
            hasher.update(data)
            if last:
                yield last
            last = data
        if "sha256:" + hasher.hexdigest() != digest:
            raise self._damaged(path, "is damaged")
        yield last

    def _damaged(self, path: bytes, how: str) -> StoreError:
        return StoreError(
            f"{show(path)}: the kept blob {how}: --compress makes a new one, and another manifest"
        )

    def _told(self, chunks: Iterator[bytes], digest: str, size: int) -> Iterator[bytes]:
        done = 0
        for chunk in chunks:
            yield chunk
            done += len(chunk)
            if self._progress is not None:
                self._progress(f"exporting {digest[:19]}", done, size)


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
