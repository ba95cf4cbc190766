"""Brings an image into a store.

Everything is made in the session's directory first: objects, the index and the split of each new
layer, the index of the image. It is checked, synced, renamed into place, and only then named in the database, in one
transaction. Whatever happens before that leaves nothing a reader could see.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from layerstore import collect, digests, names
from layerstore.collect import IMAGES, LAYERS, index_path
from layerstore.errors import ObjectMissing, SourceInvalid, StoreError, show
from layerstore.index.merge import write_merged
from layerstore.index.writer import write_index
from layerstore.objects import Objects, Staging, sync_files
from layerstore.oci.compression import Stream
from layerstore.oci.image import ImageSource, LayerSource, host_architecture, parse_object
from layerstore.oci.layer import LayerBuilder
from layerstore.oci.limits import DEFAULT_LIMITS, Limits
from layerstore.oci.sources import open_source
from layerstore.oci.tar import TarReader
from layerstore.refs import ImageRow, LayerRow, Refs
from layerstore.room import no_room
from layerstore.session import Session
from layerstore.split import SplitWriter

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int | None], None]
"""Called with a step's name, the bytes done and the bytes there are (None: not known), from any
thread."""


class Importer:
    """One import.

    Args:
        root: of the store.
        refs: its database.
        session: entered.
        progress: told how far it is.
        absolute_names: see `LayerBuilder`.
        keep_blobs: keep the layers' blobs as they come, where the image has a manifest that lists
            them and they are compressed: what is plain is rebuilt as it was anyway.
        limits: for what a layer may hold.
    """

    def __init__(
        self,
        root: bytes,
        refs: Refs,
        session: Session,
        progress: Progress | None = None,
        *,
        absolute_names: bool = False,
        keep_blobs: bool = False,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._root = root
        self._refs = refs
        self._session = session
        self._progress = progress
        self._absolute_names = absolute_names
        self._keep_blobs = keep_blobs
        self._limits = limits
        self._blobs: dict[str, int] = {}
        objects = Objects(os.path.join(root, b"objects"))
        self._staging = Staging(objects, session.objects)
        self._new_layers: dict[str, LayerRow] = {}
        self._splits = 0
        self._new_files: list[tuple[bytes, bytes]] = []  # staged, final

    def run(self, spec: str, tag: str | None) -> str:
        """Import the image that `spec` names; returns its id.

        Args:
            spec: see `layerstore.oci.sources`.
            tag: the name it gets; None: what the source calls it.

        Raises:
            StoreError: it cannot be imported; nothing was.
        """
        tag = names.full_name(tag) if tag is not None else None
        with no_room(self._root), open_source(spec, self._session.scratch, self._limits) as source:
            return self.take(source, spec, tag)

    def take(self, source: ImageSource, spec: str, tag: str | None) -> str:
        """Import an image that is open already; as `run`, but that `spec` is only remembered, and `tag`
        is a full name."""
        self._keep_blobs = self._keep_blobs and bool(source.manifest)
        layers = [self._layer(layer) for layer in source.layers]
        diff_ids = [layer.diff_id for layer in layers]
        image = self._image_row(source, spec, diff_ids)
        chain_digest = self._merge(image.chain_id, diff_ids)
        tags = [tag] if tag is not None else _valid_names(source.names)
        self._place()
        with self._refs.transaction():
            # Also those that were there: they may have been removed meanwhile, but for their
            # files, which are not collected while an import runs.
            for layer in layers:
                self._refs.add_layer(layer)
            self._refs.set_checksums(self._staging.checksums)
            self._refs.add_chain(image.chain_id, chain_digest)
            self._refs.add_image(image, diff_ids)
            if self._keep_blobs:
                self._refs.set_manifest(image.id, source.manifest)
                self._refs.set_blobs(image.id, self._blobs)
            for name in tags:
                self._refs.set_tag(name, image.id)
        self._session.committed()
        return image.id

    # --- layers

    def _layer(self, source: LayerSource) -> LayerRow:
        if source.diff_id is not None:
            known = self._new_layers.get(source.diff_id) or self._refs.layer(source.diff_id)
            if known is not None:
                self._keep_blob_of(source)
                return known
        return self._assembled_layer(source) or self._new_layer(source)

    def _assembled_layer(self, source: LayerSource) -> LayerRow | None:
        """A layer of which most is in the store; None if all of its blob is needed."""
        blob = source.assemble() if source.assemble is not None else None
        if blob is None:
            return None
        tar = LayerSource(source.label, lambda: blob, source.diff_id)
        try:
            with self._staging.attempt():
                return self._new_layer(tar)
        except (SourceInvalid, ObjectMissing) as error:
            log.warning(
                "%s: so it is when put together with files of the store; it is read whole", error
            )
            return None

    def _new_layer(self, source: LayerSource) -> LayerRow:
        with contextlib.ExitStack() as stack:
            blob = stack.enter_context(contextlib.closing(source.open()))
            on_read = self._reporter(source.label, source.size)
            split_path = os.path.join(self._session.directory, b"split-%d" % self._splits)
            self._splits += 1
            with (
                self._copy(source) as copy,
                Stream(blob, source.label, on_read, copy=copy, limits=self._limits) as stream,
                open(split_path, "xb", opener=_read_only) as file,
            ):
                split = SplitWriter(file)
                builder = LayerBuilder(
                    self._staging,
                    source.label,
                    absolute_names=self._absolute_names,
                    split=split,
                    limits=self._limits,
                    scratch=self._session.scratch,
                )
                stack.callback(builder.close)
                reader = TarReader(
                    stream, source.label, needs_end=source.needs_end, record=split.raw
                )
                try:
                    tree = builder.apply_all(reader)
                except SourceInvalid as error:
                    raise self._blame(source, stream, error) from None
                _check_digests(source, stream)
                split.finish(stream.digest, stream.size)
            diff_id = stream.digest
            path = os.path.join(self._session.directory, digests.hex_of(diff_id).encode())
            with open(path, "xb", opener=_read_only) as file:
                write_index(tree, file, self._session.scratch)
        digest = digests.of_file(path)
        self._new_files.append((path, index_path(self._root, LAYERS, diff_id)))
        self._new_files.append((split_path, collect.split_path(self._root, diff_id)))
        row = LayerRow(diff_id, stream.size, builder.content_bytes, builder.entries, digest)
        self._new_layers[diff_id] = row
        return row

    def _keep_blob_of(self, source: LayerSource) -> None:
        """Keep the blob of a layer that is there already. Its content is compared with the diff id
        all the same: what is kept must be that layer."""
        with self._copy(source) as copy:
            if copy is None:
                return
            with (
                contextlib.closing(source.open()) as blob,
                Stream(
                    blob,
                    source.label,
                    self._reporter(source.label, source.size),
                    copy=copy,
                    limits=self._limits,
                ) as stream,
            ):
                while stream.read(1 << 20):
                    pass
                _check_digests(source, stream)

    @contextlib.contextmanager
    def _copy(self, source: LayerSource) -> Iterator[Callable[[bytes], object] | None]:
        """What takes the bytes of a layer's blob to keep them; None if that is not called for. The
        context ends well only once they have been checked."""
        digest, size = source.digest, source.size
        if not self._keep_blobs or digest is None or size is None or digest == source.diff_id:
            yield None
            return
        final = collect.blob_path(self._root, digest)
        if digest in self._blobs or os.path.exists(final):
            yield None
        else:
            path = os.path.join(self._session.directory, b"blob-%d" % len(self._blobs))
            with open(path, "xb", opener=_read_only) as file:
                yield file.write
            self._new_files.append((path, final))
        self._blobs[digest] = size

    def _blame(self, source: LayerSource, stream: Stream, error: SourceInvalid) -> SourceInvalid:
        """The error to show for a layer that could not be read: a blob that is not what the
        manifest says is the cause, whatever the tar reader stumbled over."""
        if source.digest is None:
            return error
        with contextlib.suppress(SourceInvalid):
            while stream.read(1 << 20):
                pass
            _check_digests(source, stream)
            return error
        try:
            found, size = _digest_of(source)
        except SourceInvalid as other:
            return other
        if (found, size) == (source.digest, source.size):
            return error
        return _damaged(source, found, size)

    def _reporter(self, label: str, total: int | None) -> Callable[[int], None] | None:
        progress = self._progress
        if progress is None:
            return None
        return lambda done: progress(label, done, total)

    # --- the image

    def _image_row(self, source: ImageSource, spec: str, diff_ids: list[str]) -> ImageRow:
        config = source.config or (source.make_config or _bare_config)(diff_ids)
        parse_object(config, f"{source.label}: the config")
        return ImageRow(
            digests.of_bytes(config),
            digests.chain_id(diff_ids),
            config,
            source.manifest,
            show(spec),
            time.time_ns(),
        )

    def _merge(self, chain_id: str, diff_ids: list[str]) -> str:
        """Write the index of the image if it is not there; returns its digest."""
        known = self._refs.chains().get(chain_id)
        if known is not None:
            return known
        staged = {final: path for path, final in self._new_files}
        finals = [index_path(self._root, LAYERS, diff_id) for diff_id in diff_ids]
        path = os.path.join(self._session.directory, b"image")
        with open(path, "xb", opener=_read_only) as file:
            layers = [staged.get(final, final) for final in finals]
            write_merged(layers, file, self._session.scratch)
        digest = digests.of_file(path)
        self._new_files.append((path, index_path(self._root, IMAGES, chain_id)))
        return digest

    def _place(self) -> None:
        self._staging.sync()
        sync_files([path for path, _ in self._new_files], self._root)
        self._session.placing()
        self._staging.place()
        for path, final in self._new_files:
            os.rename(path, final)
        self._staging.sync_names()
        parents = {os.path.dirname(final) for _, final in self._new_files}
        sync_files(sorted(parents), self._root)


def _check_digests(source: LayerSource, stream: Stream) -> None:
    """Compare a layer that was read to its end with what the manifest and the config say."""
    if source.digest is not None and (
        stream.blob_digest != source.digest or stream.blob_size != source.size
    ):
        raise _damaged(source, stream.blob_digest, stream.blob_size)
    if source.diff_id is not None and stream.digest != source.diff_id:
        raise SourceInvalid(
            f"{source.label}: its uncompressed digest is {stream.digest},"
            f" the config says {source.diff_id}: damaged or forged; get it again"
        )


def _digest_of(source: LayerSource) -> tuple[str, int]:
    with contextlib.closing(source.open()) as blob:
        return digests.of_stream(blob)


def _damaged(source: LayerSource, found: str, size: int) -> SourceInvalid:
    if source.size is not None and size != source.size:
        return SourceInvalid(
            f"{source.label}: has {size} bytes, the manifest says {source.size}:"
            " cut short or damaged; get it again"
        )
    return SourceInvalid(
        f"{source.label}: its digest is {found}, the manifest says {source.digest}:"
        " damaged; get it again"
    )


def _bare_config(diff_ids: list[str]) -> bytes:
    """The config of a bare tree: no time in it, so that the same tree is the same image."""
    config: dict[str, Any] = {
        "architecture": host_architecture(),
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created_by": "layerstore import"}],
    }
    return json.dumps(config, sort_keys=True, separators=(",", ":")).encode()


def _valid_names(found: list[str]) -> list[str]:
    """What a source calls its image, as far as those are names here."""
    valid = []
    for name in found:
        with contextlib.suppress(StoreError):
            valid.append(names.full_name(name))
    return valid


def _read_only(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o444)
