"""`Store`: images by name, and everything needed to mount one.

    ROOT/refs.sqlite        tags, images, layers, named uppers, leases (refs)
    ROOT/objects/ab/cd...   content by SHA-256 (objects)
    ROOT/layers/DIFF.erofs  the index of each layer
    ROOT/layers/DIFF.tarsplit  what its tar is rebuilt from (split)
    ROOT/blobs/SHA256       the blobs of layers as they came, where an import was to keep them
    ROOT/images/CHAIN.erofs the index of each image, its layers merged, by chain id
    ROOT/uppers/NAME/       upper and work of a named upper
    ROOT/quarantine/...     damaged objects (scrub)
    ROOT/tmp, ROOT/lock     imports under way (session)
    ROOT/reserve            space for removals on a full disk (room)

Blocking; one thread per `Store`, any number of processes per directory.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layerstore import collect, in_use, names, room, session
from layerstore.collect import BLOBS, IMAGES, LAYERS, Collected, index_path
from layerstore.errors import ImageInUse, ImageUnknown, NoRoom, StoreError, show
from layerstore.leases import Leases
from layerstore.objects import QUARANTINE, Objects
from layerstore.place import ROOT_VARIABLE, default_root
from layerstore.refs import ImageRow, LayerRow, Refs, short_id
from layerstore.uppers import Ground, Uppers

if TYPE_CHECKING:
    from layerstore.export.exporter import Exported
    from layerstore.export.layers import Compression
    from layerstore.importer import Progress
    from layerstore.layer_tar import LayerTar
    from layerstore.oci.limits import Limits

_DATABASE = b"refs.sqlite"
_DIRECTORIES = (b"objects", LAYERS, IMAGES, BLOBS, b"uppers", b"tmp")
_LATER = (QUARANTINE, room.RESERVE, _DATABASE, b"lock")


@dataclass(slots=True, frozen=True)
class Image:
    """An image in the store.

    `id`: the digest of its config. `layers`: bottom first; `layer_indexes` are theirs.
    `image_index`: all of them merged. `config`: parsed. `size`: bytes of all files of all layers,
    before deduplication. `imported_ns`: in nanoseconds since 1970. `manifest`: as it came, empty
    where the source had none.
    """

    id: str
    tags: list[str]
    chain_id: str
    layers: list[LayerRow]
    image_index: bytes
    layer_indexes: list[bytes]
    config: dict[str, Any]
    size: int
    source: str
    imported_ns: int
    manifest: bytes

    @property
    def name(self) -> str:
        """What to call it in a message: its first tag, or the start of its id."""
        return self.tags[0] if self.tags else short_id(self.id)


class Store:
    """A layer store; see `open`."""

    def __init__(self, root: bytes, refs: Refs) -> None:
        self.root = root
        self.objects_dir = os.path.join(root, b"objects")
        self._refs = refs
        self.leases = Leases(root, refs)
        self._uppers = Uppers(root, refs, self.leases)
        self.close = weakref.finalize(self, _close, root, refs)

    @classmethod
    def open(cls, root: bytes | str | None = None, create: bool = False) -> Store:
        """Open the store in a directory.

        Args:
            root: the directory, or None for `default_root`.
            create: make the store if there is none.

        Raises:
            StoreError: there is no store, or something else is there, or it may not be used.
        """
        path = default_root() if root is None else os.path.abspath(os.fsencode(root))
        try:
            if create:
                _make(path)
            elif not os.path.exists(os.path.join(path, _DATABASE)):
                raise StoreError(
                    f"{show(path)}: there is no layer store: layerstore import makes one,"
                    f" --root or {ROOT_VARIABLE} names another place"
                )
            store = cls(path, _open_refs(path, create))
            room.restore(path)
            return store
        except OSError as error:
            where = error.filename if error.filename is not None else path
            raise StoreError(
                f"{show(where)}: {error.strerror}: the layer store cannot be used; --root or"
                f" {ROOT_VARIABLE} names another place"
            ) from None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- images

    def images(self) -> list[Image]:
        """All images, the newest first."""
        tags = self._refs.tags()
        return [self._image(row, tags) for row in self._refs.images()]

    def resolve(self, name: str) -> Image:
        """The image with this tag (`latest` if none is given), this id or start of an id, or, if
        only one has it, this tag without registry and path.

        Raises:
            ImageUnknown: none or several do.
        """
        row, tags = self._find(name)
        return self._image(row, tags)

    def index_of(self, name: str) -> bytes:
        """The path of an image's index; see `ground_of`."""
        return self.ground_of(name).index_path

    def ground_of(self, name: str) -> Ground:
        """What a mount needs of an image; finds it as `resolve` does, and looks at none of its layers:
        that costs the same whatever their number.
        """
        row, tags = self._find(name)
        shown = next((tag for tag, image_id in tags.items() if image_id == row.id), None)
        index = index_path(self.root, IMAGES, row.chain_id)
        return Ground(row.id, shown or short_id(row.id), index)

    def _find(self, name: str) -> tuple[ImageRow, dict[str, str]]:
        tags = self._refs.tags()
        image_id = None
        full = _full_name(name)
        if full is not None:
            image_id = tags.get(full)
            if image_id is None:
                found = {key: value for key, value in tags.items() if names.is_short_for(full, key)}
                if len(set(found.values())) > 1:
                    raise ImageUnknown(f"{show(name)}: which one? {', '.join(found)}")
                image_id = next(iter(found.values()), None)
        digits = names.id_digits(name) if image_id is None else image_id[7:]
        rows = self._refs.images_by_prefix(digits) if digits else []
        if len(rows) == 1:
            return rows[0], tags
        if rows:
            raise ImageUnknown(f"{show(name)}: {len(rows)} image ids start so: give more digits")
        raise ImageUnknown(
            f"{show(name)}: no such image in {show(self.root)}: layerstore images lists them,"
            " layerstore import brings one"
        )

    def _image(self, row: ImageRow, tags: dict[str, str]) -> Image:
        layers = self._refs.image_layers(row.id)
        return Image(
            id=row.id,
            tags=[name for name, image_id in tags.items() if image_id == row.id],
            chain_id=row.chain_id,
            layers=layers,
            image_index=index_path(self.root, IMAGES, row.chain_id),
            layer_indexes=[index_path(self.root, LAYERS, layer.diff_id) for layer in layers],
            config=json.loads(row.config),
            size=sum(layer.content_size for layer in layers),
            source=row.source,
            imported_ns=row.imported_ns,
            manifest=row.manifest,
        )

    def import_image(
        self,
        source: str,
        tag: str | None = None,
        progress: Progress | None = None,
        *,
        absolute_names: bool = False,
        keep_blobs: bool = False,
        limits: Limits | None = None,
    ) -> Image:
        """Import an image.

        Args:
            source: spelled as `layerstore.oci.sources` says.
            tag: NAME[:TAG] for it; None: what the source calls it, which may be nothing.
            progress: see `layerstore.importer.Progress`.
            absolute_names: take absolute names in a layer as names below its root.
            keep_blobs: keep compressed layers also as they came, so that the digest of the image's
                manifest survives an export.
            limits: for what a layer may hold; None: the usual ones.

        Raises:
            StoreError: it cannot be imported; nothing was.
        """
        from layerstore.importer import Importer
        from layerstore.oci.limits import DEFAULT_LIMITS

        with self.importing() as importing:
            importer = Importer(
                self.root,
                self._refs,
                importing,
                progress,
                absolute_names=absolute_names,
                keep_blobs=keep_blobs,
                limits=limits or DEFAULT_LIMITS,
            )
            image_id = importer.run(source, tag)
        return self.resolve(image_id)

    @contextlib.contextmanager
    def importing(self) -> Iterator[session.Session]:
        """A session for whatever brings an image; afterwards nothing is left of one that failed."""
        self._tidy()
        try:
            with session.Session(self.root) as importing:
                yield importing
        except BaseException:
            # What a failed import left may also be more than a full disk lets us tidy up.
            with contextlib.suppress(Exception):
                self._tidy()
            raise

    def layer_tar(self, diff_id: str) -> LayerTar:
        """The plain tar of a layer as a stream; see `layerstore.layer_tar`.

        Args:
            diff_id: of the layer, as in `Image.layers`.

        Raises:
            StoreError: there is no such layer.
            SplitMissing: its tar cannot be rebuilt.
        """
        from layerstore.layer_tar import LayerTar

        row = self._refs.layer(diff_id)
        if row is None:
            raise StoreError(f"{show(self.root)}: there is no layer {diff_id}")
        path = collect.split_path(self.root, diff_id)
        return LayerTar(self.objects(), path, diff_id, row.tar_size)

    def export_image(
        self,
        name: str,
        destination: str,
        progress: Progress | None = None,
        *,
        compression: Compression | None = None,
        force: bool = False,
    ) -> Exported:
        """Export an image. Its id and its layers' diff ids stay, and the digest of its manifest too
        where its layers leave as they came.

        Args:
            name: as for `resolve`.
            destination: spelled as `layerstore.export.destination` says.
            progress: see `layerstore.importer.Progress`.
            compression: of the layers; None: as they came where that can be, else compressed as they
                were, and with gzip where that is not known.
            force: replace a file that is there.

        Raises:
            ImageUnknown: no such image.
            SplitCorrupt, SplitMissing, ObjectCorrupt, ObjectMissing: it is damaged.
            StoreError: it cannot be exported; nothing was, but for what a stream has taken.
        """
        from layerstore.export.exporter import Exporter

        image = self.resolve(name)
        exporter = Exporter(self.root, self._refs, compression, force=force, progress=progress)
        return exporter.run(image.id, image.tags, destination)

    def tag(self, name: str, tag: str) -> None:
        """Give an image one more tag, taking it from any other.

        Raises:
            ImageUnknown, StoreError: no such image, no such name possible.
        """
        full = names.full_name(tag)
        with self._refs.transaction():
            row, _ = self._find(name)
            self._refs.set_tag(full, row.id)

    def remove(self, name: str, *, force: bool = False) -> Collected | None:
        """Remove a tag, and with its last tag (or by id) the image, and what only it needed.

        Args:
            name: as for `resolve`.
            force: by id, although it has several tags.

        Returns:
            what was deleted from the disk; None if that was put off because an import is running.

        Raises:
            ImageUnknown: no such image.
            ImageInUse: a mount, a lease or a named upper needs it, or several tags name it.
        """
        if room.is_full(self.root):
            room.release(self.root)
        with self._refs.transaction():
            row, tags = self._find(name)
            its_tags = [tag for tag, image_id in tags.items() if image_id == row.id]
            by_tag = self._tag_meant(name, its_tags)
            if by_tag is not None and len(its_tags) > 1:
                self._refs.remove_tag(by_tag)
                return Collected(0, 0, 0)
            if len(its_tags) > 1 and not force:
                raise ImageInUse(
                    f"image {short_id(row.id)} has the tags {', '.join(its_tags)}: remove those, or"
                    " use --force"
                )
            self.leases.refuse_held(row)
            if not self._is_chain_shared(row):
                _refuse_in_use(row, index_path(self.root, IMAGES, row.chain_id))
            self._refs.remove_image(row.id)
        return self.collect()

    def _tag_meant(self, name: str, its_tags: list[str]) -> str | None:
        full = _full_name(name)
        if full is None:
            return None
        for tag in its_tags:
            if tag == full or names.is_short_for(full, tag):
                return tag
        return None

    def _is_chain_shared(self, row: ImageRow) -> bool:
        return any(
            other.chain_id == row.chain_id and other.id != row.id for other in self._refs.images()
        )

    def collect(self) -> Collected | None:
        """Delete what nothing refers to; see `layerstore.collect`.

        Raises:
            IndexCorrupt: an index cannot be read; nothing was deleted.
        """
        if room.is_full(self.root):
            room.release(self.root)
        session.sweep(self.root, downloads=True)
        self.leases.settle()
        try:
            return collect.collect(self.root, self._refs)
        finally:
            room.restore(self.root)

    def _tidy(self) -> None:
        if session.sweep(self.root):
            # Damage elsewhere in the store is no reason not to import; it puts the collection off.
            with contextlib.suppress(StoreError):
                collect.collect(self.root, self._refs)

    def objects(self) -> Objects:
        """The objects."""
        return Objects(self.objects_dir)

    def refs(self) -> Refs:
        """The database."""
        return self._refs

    # --- named uppers

    def named_upper(self, name: str, image: Image | Ground) -> tuple[bytes, bytes]:
        """The upper and work directory called `name`, made when it is first asked for.

        The new upper has the attributes of the image's root, which it stands for in the union.

        Raises:
            StoreError: the name cannot be one, or belongs to another image.
        """
        if isinstance(image, Image):
            image = Ground(image.id, image.name, image.image_index)
        return self._uppers.get(name, image)

    def mark_metacopies(self, name: str) -> None:
        """Note that a named upper may get files that only have attributes (metacopies)."""
        self._uppers.mark_metacopies(name)

    def has_metacopies(self, name: str) -> bool:
        """Whether a named upper may have files that only have attributes (metacopies)."""
        return self._uppers.has_metacopies(name)

    def uppers(self) -> dict[str, str]:
        """All named uppers, and the id of the image each is on."""
        return self._refs.uppers()

    def remove_upper(self, name: str) -> None:
        """Delete a named upper and everything in it.

        Raises:
            StoreError: there is none of this name, or a mount uses it.
        """
        self._uppers.remove(name)


def _full_name(name: str) -> str | None:
    """`name` with its tag, None if no image can be called so."""
    try:
        return names.full_name(name)
    except StoreError:
        return None


def _close(root: bytes, refs: Refs) -> None:
    refs.close()
    # On a full disk the database has had its space.
    room.restore(root)


def _open_refs(path: bytes, create: bool) -> Refs:
    database = os.path.join(path, _DATABASE)
    try:
        return Refs(database, create=create)
    except NoRoom:
        if not room.release(path):
            raise
        return Refs(database, create=create)


def _make(path: bytes) -> None:
    database = os.path.join(path, _DATABASE)
    if not os.path.exists(database):
        os.makedirs(path, 0o700, exist_ok=True)
        strangers = set(os.listdir(path)) - {*_DIRECTORIES, *_LATER}
        if any(not name.startswith(_DATABASE) for name in strangers):
            raise StoreError(
                f"{show(path)}: is neither empty nor a layer store: choose another --root"
            )
    for name in _DIRECTORIES:
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.join(path, name), 0o700)


def _refuse_in_use(row: ImageRow, path: bytes) -> None:
    try:
        held = in_use.claim(path) if os.path.exists(path) else -1
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS):
            raise
        held = -1
    if held is None:
        raise ImageInUse(f"image {short_id(row.id)} is mounted or being read: unmount it first")
    if held >= 0:
        os.close(held)
