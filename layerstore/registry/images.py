"""A store's images from and to registries. Blocking; see `Store` for threads and processes."""

from __future__ import annotations

import os

from layerstore import digests, names
from layerstore.export.layers import Compression, LayerBlobs
from layerstore.importer import Importer, Progress
from layerstore.oci.limits import DEFAULT_LIMITS, Limits
from layerstore.registry.access import Access
from layerstore.registry.background import Background
from layerstore.registry.platforms import parse_platform
from layerstore.registry.pull import KnownFiles, Traffic, open_image
from layerstore.registry.push import Image as PushedImage
from layerstore.registry.push import Push, Pushed
from layerstore.registry.references import SCHEME, Reference, parse_reference
from layerstore.room import no_room
from layerstore.session import DOWNLOADS
from layerstore.store import Image, Store


def pull(
    store: Store,
    reference: str,
    tag: str | None = None,
    progress: Progress | None = None,
    *,
    platform: str | None = None,
    access: Access | None = None,
    absolute_names: bool = False,
    keep_blobs: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    partial: bool = True,
    traffic: Traffic | None = None,
) -> Image:
    """Import an image from a registry; layers that are in the store are not downloaded, nor are files
    of layers with a table of contents (zstd:chunked, eStargz).

    Args:
        store: where it goes.
        reference: as `layerstore.registry.references` says.
        tag: NAME[:TAG] for it; None: the reference's name, with its registry, and tag.
        progress: see there.
        platform: OS/ARCH[/VARIANT], which image of an index; None: this machine's.
        access: how registries are reached; None: as configured for the user.
        absolute_names, keep_blobs, limits: see `Store.import_image`. To keep its blob, a layer is
            downloaded whole.
        partial: leave out files that are in the store, where a layer's table of contents allows it.
        traffic: filled in: how much came.

    Raises:
        StoreError: it cannot be imported; nothing was.
    """
    parsed = parse_reference(reference)
    wanted = parse_platform(platform) if platform is not None else None
    tag = names.full_name(tag) if tag is not None else None
    refs = store.refs()
    files = None
    # Nothing could be left out for an empty store: then the tables need not be read either.
    if partial and not keep_blobs and next(iter(store.objects()), None) is not None:
        files = KnownFiles(store.objects(), limits)
    with no_room(store.root), store.importing() as importing:
        importer = Importer(
            store.root,
            refs,
            importing,
            progress,
            absolute_names=absolute_names,
            keep_blobs=keep_blobs,
            limits=limits,
        )
        with open_image(
            parsed,
            importing.scratch,
            os.path.join(store.root, b"tmp", DOWNLOADS),
            lambda diff_id: not keep_blobs and refs.layer(diff_id) is not None,
            access or Access(),
            wanted,
            progress,
            files=files,
            traffic=traffic,
        ) as source:
            image_id = importer.take(source, f"{SCHEME}{parsed}", tag)
    return store.resolve(image_id)


def push(
    store: Store,
    name: str,
    reference: str,
    progress: Progress | None = None,
    *,
    compression: Compression | None = None,
    access: Access | None = None,
) -> Pushed:
    """Copy an image into a registry; blobs that are there already are not uploaded.

    The image id stays as it is. The digest of the manifest does where the registry has the blobs
    that the image came with, or they can be made again.

    Args:
        store: where the image is.
        name: of the image, see `Store.resolve`.
        reference: as `layerstore.registry.references` says.
        progress: see there.
        compression: of the layers; None: as they came where that can be, else compressed as they
            were, and with gzip where that is not known.
        access: how registries are reached; None: as configured for the user.

    Raises:
        ImageUnknown: no such image.
        StoreError: it cannot be pushed; the reference names what it did before.
    """
    parsed = parse_reference(reference)
    access = access or Access()
    place = access.place(parsed)
    # The session keeps collections away, and has room for blobs.
    with no_room(store.root, "nothing was pushed"), store.importing() as session:
        image = store.resolve(name)
        (row,) = store.refs().images_by_prefix(digests.hex_of(image.id))
        mount_from = _mount_from(image.source, parsed)
        repository = access.repository(
            parsed, place, "pull,push", [mount_from] if mount_from is not None else []
        )
        blobs = LayerBlobs(store.root, store.refs(), compression, progress)
        method = compression.method if compression is not None else None
        job = Push(
            PushedImage(row.config, row.manifest, image.layers, blobs, method),
            repository,
            mount_from,
            session.scratch,
            access.jobs,
            progress,
        )
        with Background() as background:
            background.stack.push_async_exit(repository.registry)
            try:
                return background.run(job.run, parsed.version)
            finally:
                job.stop()


def _mount_from(source: str, reference: Reference) -> str | None:
    """The repository that an image was pulled from, if it is another one of the same registry."""
    if not source.startswith(SCHEME):
        return None
    pulled = parse_reference(source)
    is_other = pulled.registry == reference.registry and pulled.repository != reference.repository
    return pulled.repository if is_other else None
