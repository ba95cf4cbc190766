"""Pulls an image: its manifest and config at once, its layers side by side while they are imported."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast

import trio

from layerstore import digests
from layerstore.errors import StoreError
from layerstore.importer import Progress
from layerstore.oci.image import ImageSource, Layout, parse_object
from layerstore.registry.access import Access, Repository
from layerstore.registry.background import Background
from layerstore.registry.blobs import Blob, download
from layerstore.registry.errors import RegistryError
from layerstore.registry.manifests import fetch_config, fetch_manifest
from layerstore.registry.platforms import Platform, fitness, host_platform
from layerstore.registry.references import Reference


@contextlib.contextmanager
def open_image(
    reference: Reference,
    scratch: bytes,
    is_known: Callable[[str], bool],
    access: Access,
    platform: Platform | None = None,
    progress: Progress | None = None,
) -> Iterator[ImageSource]:
    """The image a reference names, to be imported while the context lasts.

    Args:
        reference: the image.
        scratch: a directory for its blobs.
        is_known: whether a layer, by its diff id, is not needed.
        access: how registries are reached.
        platform: which image of an index; None: this machine's.
        progress: told how far the downloads are.

    Raises:
        StoreError: it is not to be had, or not as it should be.
    """
    with Background() as background, contextlib.ExitStack() as stack:
        sources, manifest, config = background.run(
            _fetch_head, background, reference, access, platform or host_platform()
        )
        files = _Files(str(reference), manifest, config)
        image = Layout(files, blobs="").bare_image()
        _check_platform(image, platform)
        needed = {
            layer.digest: layer.size
            for layer in image.layers
            if layer.diff_id is None or not is_known(layer.diff_id)
        }
        for digest, size in needed.items():
            assert digest is not None
            assert size is not None
            path = os.path.join(scratch, digests.hex_of(digest).encode())
            blob = Blob(digest, size, path)
            stack.callback(blob.close)
            files.blobs[digests.hex_of(digest)] = blob
        background.start(_download_all, list(files.blobs.values()), sources, access.jobs, progress)
        image.names = [reference.tagged] if reference.tagged is not None else []
        yield image


async def _fetch_head(
    background: Background, reference: Reference, access: Access, platform: Platform
) -> tuple[list[Repository], bytes, bytes]:
    """The first places that has the image and those after it, its manifest and its config."""
    places = await trio.to_thread.run_sync(access.places, reference)
    repositories = [access.repository(reference, place, "pull") for place in places]
    for repository in repositories:
        background.stack.push_async_exit(repository.registry)
    failures: list[StoreError] = []
    for number, repository in enumerate(repositories):
        try:
            data, digest = await fetch_manifest(repository, reference.version, platform)
            manifest = parse_object(data, f"{repository}@{digest}")
            config = await fetch_config(repository, manifest, str(reference))
            return repositories[number:], data, config
        except StoreError as error:
            failures.append(error)
    if len(failures) > 1:
        raise RegistryError(f"{failures[-1]} (before that, {failures[0]})")
    raise failures[0]


def _check_platform(image: ImageSource, wanted: Platform | None) -> None:
    """Refuse an image that is not of an index and made for another platform than asked for."""
    if wanted is None:
        return
    config = parse_object(image.config, f"{image.label}: the config")
    fields = [config.get(key) or None for key in ("os", "architecture", "variant")]
    if not all(isinstance(field, str | None) for field in fields):
        fields = [None, None, None]
    made_for = Platform(fields[0] or "", fields[1] or "", fields[2])
    if fitness(wanted, made_for) is None:
        raise RegistryError(f"{image.label}: is an image for {made_for}, not for {wanted}")


async def _download_all(
    blobs: list[Blob], sources: list[Repository], jobs: int, progress: Progress | None
) -> None:
    limit = trio.CapacityLimiter(jobs)

    async def one(blob: Blob) -> None:
        report = None
        if progress is not None:
            told, label = progress, f"downloading {blob.digest[:19]}"

            def report(done: int) -> None:
                told(label, done, blob.size)

        async with limit:
            try:
                await download(blob, sources, report)
            except Exception as error:
                # The importer is told at once, whichever it is waiting for.
                for it in blobs:
                    it.fail(error)
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        # In the importer's order: bottom first.
        for blob in blobs:
            nursery.start_soon(one, blob)
            await trio.lowlevel.checkpoint()


class _Files:
    """A manifest, a config and layers, under the names that skopeo's `dir:` gives them."""

    def __init__(self, label: str, manifest: bytes, config: bytes) -> None:
        self.label = label
        self._manifest = manifest
        self._config = config
        self.blobs: dict[str, Blob] = {}

    def open(self, name: str) -> BinaryIO | None:
        """As in `layerstore.oci.files.Files`."""
        if name == "manifest.json":
            return io.BytesIO(self._manifest)
        if name in self.blobs:
            return cast(BinaryIO, self.blobs[name].open())
        # No other blob is asked for than the config, and its digest is checked.
        return io.BytesIO(self._config) if self._config else None
