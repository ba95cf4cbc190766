"""Pulls an image: its manifest and config at once, its layers side by side while they are imported."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, cast

import trio

from layerstore import digests
from layerstore.errors import StoreError
from layerstore.importer import Progress
from layerstore.objects import Objects
from layerstore.oci.image import ImageSource, Layout, parse_object
from layerstore.oci.limits import Limits
from layerstore.oci.manifests import listed_layers
from layerstore.registry.access import Access, Repository
from layerstore.registry.background import Background
from layerstore.registry.blobs import Blob, download
from layerstore.registry.errors import RegistryError
from layerstore.registry.manifests import fetch_config, fetch_manifest
from layerstore.registry.partials import open_partial, tidy
from layerstore.registry.parts import Parts, has_table
from layerstore.registry.platforms import Platform, fitness, host_platform
from layerstore.registry.references import Reference


@contextlib.contextmanager
def open_image(
    reference: Reference,
    scratch: bytes,
    partials: bytes,
    is_known: Callable[[str], bool],
    access: Access,
    platform: Platform | None = None,
    progress: Progress | None = None,
    *,
    files: KnownFiles | None = None,
    traffic: Traffic | None = None,
) -> Iterator[ImageSource]:
    """The image a reference names, to be imported while the context lasts.

    Args:
        reference: the image.
        scratch: a directory for blobs that somebody else is downloading as well.
        partials: a directory for those that are not; a pull that ends before its time leaves them
            there for the next one.
        is_known: whether a layer, by its diff id, is not needed.
        access: how registries are reached.
        platform: which image of an index; None: this machine's.
        progress: told how far the downloads are.
        files: those that a layer with a table of contents may be put together from; None: every
            layer is downloaded whole.
        traffic: filled in when the context ends.

    Raises:
        StoreError: it is not to be had, or not as it should be.
    """
    # The files are closed last, when nobody writes to them any more.
    with contextlib.ExitStack() as stack, Background() as background:
        sources, manifest, config = background.run(
            _fetch_head, background, reference, access, platform or host_platform()
        )
        downloads = Downloads(background, sources, scratch, partials, access.jobs, progress)
        stack.callback(downloads.close, traffic)
        image = Layout(_Files(str(reference), manifest, config, downloads), blobs="").bare_image()
        _check_platform(image, platform)
        descriptors = listed_layers(manifest, len(image.layers))
        for layer, descriptor in zip(image.layers, descriptors, strict=True):
            assert layer.digest is not None
            assert layer.size is not None
            assert descriptor is not None
            downloads.sizes[digests.hex_of(layer.digest)] = layer.size
            if layer.diff_id is not None and is_known(layer.diff_id):
                continue
            if files is None or layer.diff_id is None or not has_table(descriptor):
                downloads.start(digests.hex_of(layer.digest))
            else:
                parts = Parts(layer.label, descriptor, files.objects, files.limits, scratch)
                layer.assemble = downloads.start_parts(digests.hex_of(layer.digest), parts)
        image.names = [reference.tagged] if reference.tagged is not None else []
        try:
            yield image
        except (RegistryError, KeyboardInterrupt, SystemExit):
            # The next pull has less to do then; anything else would fail again.
            downloads.are_kept = True
            raise


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


class KnownFiles(NamedTuple):
    """What layers may be put together from: the objects of a store, and limits for what comes out."""

    objects: Objects
    limits: Limits


@dataclass(slots=True)
class Traffic:
    """Bytes of layers, as their blobs have them: how many came from the registry, and of how many in
    all."""

    fetched: int = 0
    total: int = 0

    @property
    def spared(self) -> int:
        """How many need not come, since what is in them was there."""
        return max(0, self.total - self.fetched)


class Downloads:
    """The blobs of one image on their way; used from the importer's thread.

    Args:
        background: where they are downloaded.
        sources: where they may be.
        scratch, partials: see `open_image`.
        jobs: how many at a time.
        progress: told how far they are.
    """

    def __init__(
        self,
        background: Background,
        sources: list[Repository],
        scratch: bytes,
        partials: bytes,
        jobs: int,
        progress: Progress | None,
    ) -> None:
        self.sizes: dict[str, int] = {}
        """Of all that may be asked for, by the digits of their digests."""
        self.are_kept = False
        """Whether what came is left for the next pull."""
        self._background = background
        self._sources = sources
        self._scratch = scratch
        self._partials = partials
        self._limit = trio.CapacityLimiter(jobs)
        self._progress = progress
        self._lock = threading.Lock()  # a layer in parts that is downloaded whole after all
        self._blobs: dict[str, Blob] = {}
        self._parts: dict[str, Parts] = {}

    def start(self, digits: str) -> Blob:
        """Have a blob downloaded, after those that were started before."""
        blob, is_new = self._blob(digits)
        if is_new:
            self._background.start(self._download, blob)
        return blob

    def start_parts(self, digits: str, parts: Parts) -> Callable[[], BinaryIO | None]:
        """Have a layer fetched without what is there; returns what opens its tar, see `Parts.open`."""
        if digits not in self._parts:
            self._parts[digits] = parts
            self._background.start(self._fetch_parts, digits, parts)
        return self._parts[digits].open

    def close(self, traffic: Traffic | None) -> None:
        """Close their files, and remove what is not left for the next pull. Nobody downloads any
        more."""
        if traffic is not None:
            traffic.fetched = sum(blob.fetched for blob in self._blobs.values())
            traffic.fetched += sum(parts.fetched for parts in self._parts.values())
            traffic.total = sum(self.sizes.values())
        for parts in self._parts.values():
            parts.close()
        for blob in self._blobs.values():
            if not self.are_kept or not blob.received:
                os.unlink(blob.path)
            blob.close()
        tidy(self._partials)

    def _blob(self, digits: str) -> tuple[Blob, bool]:
        """A blob, and whether nobody downloads it yet."""
        with self._lock:
            if digits in self._blobs:
                return self._blobs[digits], False
            fd = open_partial(self._partials, digits.encode())
            directory = self._scratch if fd is None else self._partials
            path = os.path.join(directory, digits.encode())
            blob = self._blobs[digits] = Blob(f"sha256:{digits}", self.sizes[digits], path, fd)
            return blob, True

    async def _download(self, blob: Blob) -> None:
        async with self._limit:
            try:
                await download(blob, self._sources, self._reporter(blob))
            except Exception as error:
                self._fail(error)

    async def _fetch_parts(self, digits: str, parts: Parts) -> None:
        progress = self._progress
        label = f"downloading {digits[:12]}"
        report = None if progress is None else lambda done, total: progress(label, done, total)
        try:
            if not await parts.run(self._sources, self._limit, report):
                blob, is_new = self._blob(digits)
                if is_new:
                    await self._download(blob)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Tell the importer at once, whichever it is waiting for."""
        for blob in list(self._blobs.values()):
            blob.fail(error)
        for parts in list(self._parts.values()):
            parts.fail(error)

    def _reporter(self, blob: Blob) -> Callable[[int], None] | None:
        progress = self._progress
        if progress is None:
            return None
        label = f"downloading {blob.digest[:19]}"
        return lambda done: progress(label, done, blob.size)


class _Files:
    """A manifest, a config and layers, under the names that skopeo's `dir:` gives them."""

    def __init__(self, label: str, manifest: bytes, config: bytes, downloads: Downloads) -> None:
        self.label = label
        self._manifest = manifest
        self._config = config
        self._downloads = downloads

    def open(self, name: str) -> BinaryIO | None:
        """As in `layerstore.oci.files.Files`."""
        if name == "manifest.json":
            return io.BytesIO(self._manifest)
        if name in self._downloads.sizes:
            return cast(BinaryIO, self._downloads.start(name).open())
        # Nothing else is asked for than the config, and its digest is checked.
        return io.BytesIO(self._config) if self._config else None
