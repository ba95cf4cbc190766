"""`commit`: an upper directory becomes a layer, and with its base an image. Blocks; one thread.

The layer goes the way of every layer: as a tar stream through the importer. So it gets its digests,
its index and its objects like one from elsewhere, what the store has already is not kept again, and
it is in the store whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, NoReturn, cast

from layerstore import in_use, names, session
from layerstore.commit import config
from layerstore.commit.base import Base
from layerstore.commit.changes import UpperTar
from layerstore.commit.config import Description
from layerstore.commit.upper import Upper, family_of
from layerstore.errors import StoreError, show
from layerstore.importer import Importer
from layerstore.index.reader import Index
from layerstore.marks import TRUSTED, USER, Marks
from layerstore.oci.image import ImageSource, LayerSource
from layerstore.place import in_initial_user_namespace
from layerstore.refs import LayerRow
from layerstore.room import no_room
from layerstore.store import Image, Store

if TYPE_CHECKING:
    from layerstore.importer import Progress


@dataclass(slots=True, frozen=True)
class Committed:
    """What is committed.

    `base`: the image that the upper was made on, as `Store.resolve` takes it; None for none. `work`:
    see `commit.upper.Upper`. `userxattr`: whether its marks are `user.overlay.*`, None: find out.
    `quiet`: it is mounted, and whoever mounted it keeps it from changing for now.
    """

    upper: bytes
    work: bytes | None
    base: str | None
    title: str
    userxattr: bool | None = None
    quiet: bool = False


def named(store: Store, name: str) -> Committed:
    """A named upper, which knows its base.

    Raises:
        StoreError: there is none of this name, or the kernel has it mounted.
    """
    image_id = store.uppers().get(names.check_upper_name(name))
    if image_id is None:
        raise StoreError(
            f"there is no named upper {name} in {show(store.root)}: layerstore uppers lists them"
        )
    mountpoint = store.leases.mount_of_upper(name)
    if mountpoint is not None:
        raise StoreError(
            f"the upper {name} is mounted by the kernel on {show(mountpoint)}: unmount it first"
        )
    directory = os.path.join(store.root, b"uppers", name.encode())
    upper, work = os.path.join(directory, b"upper"), os.path.join(directory, b"work")
    return Committed(upper, work, image_id, f"the upper {name}")


def commit(
    store: Store,
    what: Committed,
    description: Description,
    tag: str | None = None,
    progress: Progress | None = None,
) -> Image:
    """Make a layer and an image of an upper directory, which stays as it is.

    Args:
        store: where the base is, and the image will be.
        what: the upper directory.
        description: what the image says of it.
        tag: NAME[:TAG] for the image.
        progress: see `layerstore.importer.Progress`.

    Raises:
        StoreError: it cannot be committed; nothing was.
    """
    full = names.full_name(tag) if tag is not None else None
    with contextlib.ExitStack() as stack:
        if not what.quiet:
            stack.enter_context(_unmounted(what))
        importing = stack.enter_context(store.importing())
        image = store.resolve(what.base) if what.base is not None else None
        base = None
        if image is not None:
            base = Base(stack.enter_context(Index(image.image_index)), store.objects())
        upper = Upper(what.upper, what.work, _family(what))
        if image is not None and base is not None:
            _refuse_other_base(what.title, upper, base, image)
        source = _source(what.title, upper, base, image, description)
        spec = f"commit of {what.title}" + (f" on {image.name}" if image is not None else "")
        importer = Importer(store.root, store.refs(), importing, progress)
        try:
            with no_room(store.root):
                image_id = importer.take(source, spec, full)
        except FileNotFoundError as error:
            if error.filename is None or not os.fsencode(error.filename).startswith(what.upper):
                raise
            raise StoreError(
                f"{show(error.filename)}: went away while it was read: commit an upper that nobody"
                " writes to"
            ) from None
    return store.resolve(image_id)


def _refuse_other_base(title: str, upper: Upper, base: Base, image: Image) -> None:
    origin = upper.origin()
    if origin is not None and base.is_another(origin):
        raise StoreError(
            f"{title} was made on another image than {image.name}, whose name that may have been:"
            " say with --base which"
        )


def _source(
    label: str,
    upper: Upper,
    base: Base | None,
    image: Image | None,
    description: Description,
) -> ImageSource:
    below = image.layers if image is not None else []
    layers = [_known(layer) for layer in below]
    layers.append(LayerSource(label, lambda: cast(BinaryIO, UpperTar(upper, base))))

    def make_config(diff_ids: list[str]) -> bytes:
        known = image.config if image is not None else None
        return config.committed(known, len(below), diff_ids, description)

    return ImageSource(label, b"", layers, make_config=make_config)


def _known(layer: LayerRow) -> LayerSource:
    def refuse() -> NoReturn:
        raise StoreError(
            f"layer {layer.diff_id} of the base was removed meanwhile: import it again"
        )

    return LayerSource(layer.diff_id, cast(Callable[[], BinaryIO], refuse), layer.diff_id)


def _family(what: Committed) -> Marks:
    if what.userxattr is not None:
        return USER if what.userxattr else TRUSTED
    privileged = os.geteuid() == 0 and in_initial_user_namespace()
    return family_of(what.upper, privileged=privileged)


@contextlib.contextmanager
def _unmounted(what: Committed) -> Iterator[None]:
    """Keep mounts of ours, which hold a lock on theirs, away from the upper. The kernel's are seen if they
    are there when it begins.

    Raises:
        StoreError: one has it, or it is no directory.
    """
    if not os.path.isdir(what.upper):
        raise StoreError(f"{show(what.upper)}: there is no such directory")
    mountpoint = in_use.overlay_on(what.upper)
    if mountpoint is not None:
        raise StoreError(
            f"{what.title} is mounted by the kernel on {show(mountpoint)}: unmount it first"
        )
    with contextlib.ExitStack() as stack:
        for path in (what.upper, what.work):
            if not path or not os.path.exists(path):
                continue
            held = session.try_lock(path)
            if held is None:
                raise StoreError(
                    f"{what.title} is mounted: unmount it first, or let overlayfs-py commit take it as"
                    " it is"
                )
            stack.callback(os.close, held)
        yield
