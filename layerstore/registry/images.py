"""A store's images from and to registries. Blocking; see `Store` for threads and processes."""

from __future__ import annotations

from layerstore import names
from layerstore.importer import Importer, Progress, no_room
from layerstore.oci.limits import DEFAULT_LIMITS, Limits
from layerstore.registry.access import Access
from layerstore.registry.platforms import parse_platform
from layerstore.registry.pull import open_image
from layerstore.registry.references import SCHEME, parse_reference
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
) -> Image:
    """Import an image from a registry; layers that are in the store are not downloaded.

    Args:
        store: where it goes.
        reference: as `layerstore.registry.references` says.
        tag: NAME[:TAG] for it; None: the reference's name, with its registry, and tag.
        progress: see there.
        platform: OS/ARCH[/VARIANT], which image of an index; None: this machine's.
        access: how registries are reached; None: as configured for the user.
        absolute_names, keep_blobs, limits: see `Store.import_image`.

    Raises:
        StoreError: it cannot be imported; nothing was.
    """
    parsed = parse_reference(reference)
    wanted = parse_platform(platform) if platform is not None else None
    tag = names.full_name(tag) if tag is not None else None
    refs = store.refs()
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
            lambda diff_id: not keep_blobs and refs.layer(diff_id) is not None,
            access or Access(),
            wanted,
            progress,
        ) as source:
            image_id = importer.take(source, f"{SCHEME}{parsed}", tag)
    return store.resolve(image_id)
