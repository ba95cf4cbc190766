"""Pushes an image: what the registry has not, as it came where that can be, and the manifest last."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import trio

from layerstore import digests
from layerstore.errors import StoreError
from layerstore.importer import Progress
from layerstore.layer_tar import LayerTar
from layerstore.oci.compressing import compress
from layerstore.oci.image import CONFIG_TYPES, MANIFEST_TYPES
from layerstore.refs import LayerRow
from layerstore.registry.access import Repository
from layerstore.registry.errors import RegistryError
from layerstore.registry.uploads import Content, has_blob, mount_blob, upload_blob

_OCI = "application/vnd.oci."
_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_SUFFIXES = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}
Descriptor = dict[str, Any]


class Pushed(NamedTuple):
    """What was pushed. `digest`: of the manifest, the image's own or one that was made for it;
    `is_original` says which."""

    digest: str
    is_original: bool


@dataclass(frozen=True, slots=True)
class ImageContent:
    """What is pushed.

    `config`, `manifest`: as they came; the manifest is empty where there was none. `layers`: bottom
    first. `open_tar`: the plain tar of a layer by its diff id.
    """

    config: bytes
    manifest: bytes
    layers: list[LayerRow]
    open_tar: Callable[[str], LayerTar]

    def listed(self) -> list[Descriptor | None]:
        """The descriptors of the layers in the manifest, None where there is none."""
        listed = json.loads(self.manifest).get("layers") if self.manifest else None
        if isinstance(listed, list) and len(listed) == len(self.layers):
            return listed
        return [None] * len(self.layers)


class Push:
    """One push, to be run in trio.

    Args:
        image: what is pushed.
        repository: where it goes.
        mount_from: another repository of that registry that may have its blobs.
        method: how to compress layers, one of `compressing.METHODS`; None: as they came, and with
            gzip what came without a manifest.
        scratch: a directory for blobs.
        jobs: how many layers at a time.
        progress: told how far it is.
    """

    def __init__(
        self,
        image: ImageContent,
        repository: Repository,
        mount_from: str | None,
        method: str | None,
        scratch: bytes,
        jobs: int,
        progress: Progress | None,
    ) -> None:
        self._image = image
        self._repository = repository
        self._mount_from = mount_from
        self._method = method
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
        listed = self._image.listed()
        layers = await self._push_layers(listed)
        await self._push_config()
        is_original = layers == listed and bool(self._image.manifest)
        manifest = self._image.manifest if is_original else self._make_manifest(layers)
        await self._push_manifest(version, manifest)
        return Pushed(digests.of_bytes(manifest), is_original)

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
        usual = method_of(listed) if listed is not None else "gzip"
        method = self._method or usual
        if (
            listed is not None
            and method == usual
            and await self._has(listed["digest"], listed["size"])
        ):
            return listed
        kind = _OCI_LAYER + _SUFFIXES[method]
        if method == "none" and await self._has(layer.diff_id, layer.tar_size):
            return {"mediaType": kind, "digest": layer.diff_id, "size": layer.tar_size}
        content = await trio.to_thread.run_sync(self._make_blob, layer.diff_id, method)
        try:
            if method == "none" or not await self._has(content.digest, content.size):
                await upload_blob(self._repository, content, self._reporter(content))
        finally:
            os.unlink(content.path)
        return {"mediaType": kind, "digest": content.digest, "size": content.size}

    async def _has(self, digest: str, size: int) -> bool:
        """Whether the repository has a blob, perhaps from another one now."""
        if await has_blob(self._repository, digest, size):
            return True
        return self._mount_from is not None and await mount_blob(
            self._repository, digest, self._mount_from
        )

    def _make_blob(self, diff_id: str, method: str) -> Content:
        """A layer's blob in a file. In a worker thread."""
        path = os.path.join(self._scratch, digests.hex_of(diff_id).encode())
        hasher = hashlib.sha256()
        size = 0
        with self._image.open_tar(diff_id) as tar, open(path, "xb") as file:
            for data in compress(self._until_stopped(tar), method):
                hasher.update(data)
                file.write(data)
                size += len(data)
        return Content(f"sha256:{hasher.hexdigest()}", size, path)

    def _until_stopped(self, tar: LayerTar) -> Iterator[bytes]:
        done = 0
        label = f"packing {tar.diff_id[:19]}"
        for chunk in tar.chunks():
            if self._stopped.is_set():
                raise StoreError("the push was ended")
            yield chunk
            done += len(chunk)
            if self._progress is not None:
                self._progress(label, done, tar.size)

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
        if await self._has(digest, len(config)):
            return
        path = os.path.join(self._scratch, b"config")
        with open(path, "xb") as file:
            file.write(config)
        await upload_blob(self._repository, Content(digest, len(config), path))

    def _make_manifest(self, layers: list[Descriptor]) -> bytes:
        config = self._image.config
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPES[0],
            "config": {
                "mediaType": CONFIG_TYPES[0],
                "digest": digests.of_bytes(config),
                "size": len(config),
            },
            "layers": [_as_oci(layer) for layer in layers],
        }
        known = json.loads(self._image.manifest) if self._image.manifest else {}
        if isinstance(known.get("annotations"), dict):
            manifest["annotations"] = known["annotations"]
        return json.dumps(manifest, separators=(",", ":")).encode()

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
            headers={"Content-Type": json.loads(manifest).get("mediaType", MANIFEST_TYPES[0])},
            content=manifest,
        )
        said = answer.headers.get("Docker-Content-Digest", digest)
        if digests.is_sha256(said) and said != digest:
            raise RegistryError(f"{self._repository}: took {digest} for a manifest {said}")


def method_of(descriptor: Descriptor) -> str:
    """How a listed blob is compressed, by its type."""
    kind: str = descriptor["mediaType"]
    for method in ("gzip", "zstd"):
        if kind.endswith((f"+{method}", f".{method}")):
            return method
    return "none"


def _as_oci(descriptor: Descriptor) -> Descriptor:
    """A descriptor of a layer with OCI's type in the place of Docker's, which means the same."""
    if descriptor["mediaType"].startswith(_OCI):
        return descriptor
    return {**descriptor, "mediaType": _OCI_LAYER + _SUFFIXES[method_of(descriptor)]}
