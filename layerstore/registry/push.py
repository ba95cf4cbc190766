"""Pushes an image: what the registry has not, as it came where that can be, and the manifest last."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import trio

from layerstore import digests
from layerstore.errors import StoreError
from layerstore.export.archive import copy
from layerstore.export.layers import Blob, LayerBlobs
from layerstore.importer import Progress
from layerstore.oci.manifests import (
    Descriptor,
    layer_descriptor,
    listed_layers,
    manifest_for,
    media_type,
    method_of,
)
from layerstore.refs import LayerRow
from layerstore.registry.access import Repository
from layerstore.registry.errors import RegistryError
from layerstore.registry.uploads import Content, has_blob, mount_blob, upload_blob


class Pushed(NamedTuple):
    """What was pushed. `digest`: of the manifest, the image's own or one that was made for it;
    `is_original` says which."""

    digest: str
    is_original: bool


@dataclass(frozen=True, slots=True)
class Image:
    """What is pushed.

    `config`, `manifest`: as they came; the manifest is empty where there was none. `layers`: bottom
    first. `blobs`: makes what they are pushed as. `method`: how they are to be compressed, None: as
    they came.
    """

    config: bytes
    manifest: bytes
    layers: list[LayerRow]
    blobs: LayerBlobs
    method: str | None


class Push:
    """One push, to be run in trio.

    Args:
        image: what is pushed.
        repository: where it goes.
        mount_from: another repository of that registry that may have its blobs.
        scratch: a directory for blobs.
        jobs: how many layers at a time.
        progress: told how far it is.
    """

    def __init__(
        self,
        image: Image,
        repository: Repository,
        mount_from: str | None,
        scratch: bytes,
        jobs: int,
        progress: Progress | None,
    ) -> None:
        self._image = image
        self._repository = repository
        self._mount_from = mount_from
        self._scratch = scratch
        self._jobs = jobs
        self._progress = progress
        self._stopped = threading.Event()

    def stop(self) -> None:
        """End work that is under way in other threads; from any thread."""
        self._stopped.set()

    async def run(self, version: str) -> Pushed:
        """Push it.

        Args:
            version: the tag it gets, or the digest that its manifest must have.

        Raises:
            StoreError: it cannot be pushed; blobs may be there all the same, but no manifest.
        """
        listed = listed_layers(self._image.manifest, len(self._image.layers))
        layers = await self._push_layers(listed)
        await self._push_config()
        manifest = manifest_for(self._image.config, self._image.manifest, layers)
        await self._push_manifest(version, manifest)
        return Pushed(digests.of_bytes(manifest), manifest == self._image.manifest)

    # --- layers

    async def _push_layers(self, listed: list[Descriptor | None]) -> list[Descriptor]:
        done: dict[str, Descriptor] = {}
        failures: list[Exception] = []
        limit = trio.CapacityLimiter(self._jobs)

        async def one(layer: LayerRow, known: Descriptor | None) -> None:
            async with limit:
                try:
                    done[layer.diff_id] = await self._push_layer(layer, known)
                except Exception as error:
                    failures.append(error)
                    self.stop()
                    nursery.cancel_scope.cancel()

        layers = {
            layer.diff_id: (layer, it) for layer, it in zip(self._image.layers, listed, strict=True)
        }
        async with trio.open_nursery() as nursery:
            for layer, known in layers.values():
                nursery.start_soon(one, layer, known)
        if failures:
            raise failures[0]
        # A layer may be listed twice, and each time otherwise.
        return [
            known if known is not None and known["digest"] == done[layer.diff_id]["digest"]
            else done[layer.diff_id]
            for layer, known in zip(self._image.layers, listed, strict=True)
        ]  # fmt: skip

    async def _push_layer(self, layer: LayerRow, listed: Descriptor | None) -> Descriptor:
        """Have the registry have a layer; returns its descriptor."""
        usual = method_of(listed) if listed is not None else None
        if listed is not None and self._image.method in (None, usual) and await self._has(listed):
            return listed
        blob = self._image.blobs.blob(layer, listed)
        if blob.descriptor is not None and await self._has(blob.descriptor):
            return blob.descriptor
        content = await trio.to_thread.run_sync(self._make, blob, digests.hex_of(layer.diff_id))
        made = layer_descriptor(content.digest, content.size, blob.method)
        try:
            if blob.descriptor is not None or not await self._has(made):
                await upload_blob(self._repository, content, self._reporter(content))
        finally:
            os.unlink(content.path)
        return blob.descriptor or made

    async def _has(self, descriptor: Descriptor) -> bool:
        """Whether the repository has a blob, perhaps from another one now."""
        digest, size = descriptor["digest"], descriptor["size"]
        if await has_blob(self._repository, digest, size):
            return True
        return self._mount_from is not None and await mount_blob(
            self._repository, digest, self._mount_from
        )

    def _make(self, blob: Blob, name: str) -> Content:
        """A blob in a file. In a worker thread."""
        path = os.path.join(self._scratch, name.encode())
        with open(path, "xb") as file:
            digest, size = copy(self._until_stopped(blob.chunks()), file)
        return Content(digest, size, path)

    def _until_stopped(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            if self._stopped.is_set():
                raise StoreError("the push was ended")
            yield chunk

    def _reporter(self, content: Content) -> Callable[[int], None] | None:
        progress = self._progress
        if progress is None:
            return None
        label = f"uploading {content.digest[:19]}"
        return lambda done: progress(label, done, content.size)

    # --- config and manifest

    async def _push_config(self) -> None:
        config = self._image.config
        digest = digests.of_bytes(config)
        if await self._has({"digest": digest, "size": len(config)}):
            return
        path = os.path.join(self._scratch, b"config")
        with open(path, "xb") as file:
            file.write(config)
        await upload_blob(self._repository, Content(digest, len(config), path))

    async def _push_manifest(self, version: str, manifest: bytes) -> None:
        digest = digests.of_bytes(manifest)
        if ":" in version and version != digest:
            raise StoreError(
                f"{self._repository}@{version}: the manifest has the digest {digest}: name a tag"
            )
        answer = await self._repository.registry.request(
            "PUT",
            await self._repository.manifest_url(version),
            accept=(201, 202),
            headers={"Content-Type": media_type(manifest)},
            content=manifest,
        )
        said = answer.headers.get("Docker-Content-Digest", digest)
        if digests.is_sha256(said) and said != digest:
            raise RegistryError(f"{self._repository}: took {digest} for a manifest {said}")
