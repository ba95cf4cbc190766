"""Repair: puts back what `check` and `scrub` find missing or damaged.

What the store itself can give comes first: the index of an image from those of its layers, the index
of a layer from its tar, which is rebuilt from its split, and anything of a layer from its blob where
an import kept it. The rest comes from a source, spelled as for an import: it is read as an import
reads it, every digest compared, but only what is wanted is kept. What is put back is complete and
synced before one rename gives it its name, in the place of whatever is there; a crash leaves the old
or the new. An index that a mount has open stays as it is.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from layerstore import check, collect, digests, in_use, session
from layerstore.collect import IMAGES, LAYERS, index_path
from layerstore.errors import SourceInvalid, StoreError, show
from layerstore.index.merge import write_merged
from layerstore.index.tree import Tree
from layerstore.index.writer import write_index
from layerstore.objects import Staging, sync_files
from layerstore.oci.compression import Stream
from layerstore.oci.image import ImageSource, LayerSource
from layerstore.oci.layer import LayerBuilder
from layerstore.oci.sources import open_source
from layerstore.oci.tar import TarReader
from layerstore.split import SplitWriter
from layerstore.store import Store

Progress = Callable[[str, int, int | None], None]


@dataclass(slots=True)
class Repaired:
    """How much was put back. `left`: lines on what could not be, beside what a new check says."""

    objects: int = 0
    indexes: int = 0
    splits: int = 0
    blobs: int = 0
    left: list[str] = field(default_factory=list)


def repair(store: Store, source: str | None = None, progress: Progress | None = None) -> Repaired:
    """Put back what is missing or damaged.

    Args:
        source: where content is that the store has lost; see `layerstore.oci.sources`, or an image
            in a registry, `docker://REFERENCE`.
        progress: told how far it is.

    Raises:
        StoreError: the source cannot be read; what had been put back by then stays.
    """
    session.sweep(store.root)
    with session.Session(store.root) as working:
        work = _Repair(store, working, progress)
        # First what needs no source, so that less of one is read; last what the source made possible.
        work.from_the_store()
        work.from_layers(work.kept_blobs())
        if source is not None:
            with _opened(store.root, source, working.scratch) as opened:
                work.from_layers(opened.layers)
                work.blobs_from(opened.layers)
        work.from_the_store()
        return work.done


def _opened(
    root: bytes, source: str, scratch: bytes
) -> contextlib.AbstractContextManager[ImageSource]:
    if not source.startswith("docker://"):
        return open_source(source, scratch)
    from layerstore.registry.access import Access
    from layerstore.registry.pull import open_image
    from layerstore.registry.references import parse_reference

    # What is not known to be needed is downloaded when it is read.
    partials = os.path.join(root, b"tmp", session.DOWNLOADS)
    return open_image(parse_reference(source), scratch, partials, lambda _: True, Access())


class _Harvest(Staging):
    """Keeps objects that are wanted, and takes all others for known: `all_missing` says whether
    those that are not in the store are wanted, too."""

    wanted: frozenset[str] = frozenset()
    all_missing = False

    def _present(self, digest: str) -> bool:
        if digest in self.wanted:
            return self.is_staged(digest)
        return not self.all_missing or super()._present(digest)


class _Repair:
    def __init__(self, store: Store, working: session.Session, progress: Progress | None) -> None:
        self._store = store
        self._refs = store.refs()
        self._objects = store.objects()
        self._session = working
        self._progress = progress
        self._count = 0
        self.done = Repaired()

    # --- from the store

    def from_the_store(self) -> None:
        found = check.survey(self._store)
        for diff_id in found.indexes:
            if diff_id not in found.splits:
                with contextlib.suppress(StoreError):
                    self._layer_from_its_tar(diff_id)
        found = check.survey(self._store)
        broken = set(found.indexes)
        for image in self._store.images():
            if image.chain_id in found.chains and not broken & {
                row.diff_id for row in image.layers
            }:
                self._image_from_its_layers(image.chain_id, image.layer_indexes)

    def _layer_from_its_tar(self, diff_id: str) -> None:
        with self._store.layer_tar(diff_id) as tar:
            staging = _Harvest(self._objects, self._session.objects)
            builder = LayerBuilder(
                staging, diff_id, absolute_names=True, scratch=self._session.scratch
            )
            with (
                contextlib.closing(builder),
                Stream(cast(BinaryIO, tar), diff_id) as stream,
            ):
                self._put_layer_index(diff_id, builder.apply_all(TarReader(stream, diff_id)))

    def _image_from_its_layers(self, chain_id: str, paths: list[bytes]) -> None:
        made = self._path()
        with open(made, "xb", opener=_read_only) as file:
            write_merged(paths, file, self._session.scratch)
        digest = digests.of_file(made)
        if self._put(made, index_path(self._store.root, IMAGES, chain_id)):
            with self._refs.transaction():
                self._refs.set_chain_index(chain_id, digest)
            self.done.indexes += 1

    def _put_layer_index(self, diff_id: str, tree: Tree) -> None:
        made = self._path()
        with open(made, "xb", opener=_read_only) as file:
            write_index(tree, file, self._session.scratch)
        digest = digests.of_file(made)
        if self._put(made, index_path(self._store.root, LAYERS, diff_id)):
            # A newer version may write the same tree in other bytes.
            with self._refs.transaction():
                self._refs.set_layer_index(diff_id, digest)
            self.done.indexes += 1

    def _put(self, made: bytes, final: bytes) -> bool:
        if os.path.exists(final):
            held = in_use.claim(final)
            if held is None:
                line = f"{show(final)}: is in use: unmount its images, and repair again"
                if line not in self.done.left:
                    self.done.left.append(line)
                return False
            os.close(held)
        sync_files([made], self._session.directory)
        os.rename(made, final)
        sync_files([os.path.dirname(final)], self._session.directory)
        return True

    def _path(self) -> bytes:
        self._count += 1
        return os.path.join(self._session.directory, b"repair-%d" % self._count)

    # --- from layers as they came

    def kept_blobs(self) -> list[LayerSource]:
        """The sound ones of images that something is wrong with."""
        hurt = {name for problem in check.check(self._store) for name in problem.images}
        hurt_ids = {image.id for image in self._store.images() if image.name in hurt}
        if not hurt_ids:
            return []
        damaged = {problem.digest for problem in check.check_blobs(self._store, content=True)}
        found = {}
        for blob in self._refs.blobs():
            if blob.image_id in hurt_ids and blob.digest not in damaged:
                path = collect.blob_path(self._store.root, blob.digest)
                opening = functools.partial(_open, path)
                found[blob.digest] = LayerSource(
                    show(path), opening, digest=blob.digest, size=blob.size
                )
        return list(found.values())

    def blobs_from(self, layers: list[LayerSource]) -> None:
        """Put back kept blobs that are damaged or missing."""
        wanted = {problem.digest for problem in check.check_blobs(self._store, content=True)}
        for source in layers:
            if source.digest in wanted:
                made = self._path()
                with (
                    contextlib.closing(source.open()) as blob,
                    open(made, "xb", opener=_read_only) as file,
                ):
                    shutil.copyfileobj(blob, file, 1 << 20)
                if digests.of_file(made) != source.digest:
                    raise _damaged(source)
                self._put(made, collect.blob_path(self._store.root, source.digest))
                self.done.blobs += 1

    def from_layers(self, sources: list[LayerSource]) -> None:
        """Put back objects, indexes and splits that are damaged or missing."""
        found = check.survey(self._store)
        wanted = frozenset(
            problem.digest for problem in check.check(self._store) if problem.digest is not None
        )
        layers = {*found.indexes, *found.splits}
        for digest in wanted:
            layers.update(found.layers_of.get(bytes.fromhex(digest[7:]), ()))
        if not sources or not (wanted or layers):
            return
        staging = _Harvest(self._objects, self._session.objects)
        staging.wanted = wanted
        # What a layer needs whose index is lost, nobody can say before it is read.
        staging.all_missing = bool(found.indexes)
        for layer in sources:
            # A layer of no known image may have the content all the same.
            known = layer.diff_id is not None and self._refs.layer(layer.diff_id) is not None
            if not known or layer.diff_id in layers:
                self._take(layer, staging, found)
        staging.sync()
        self.done.objects += staging.count
        self._session.placing()
        staging.place()
        staging.sync_names()
        with self._refs.transaction():
            self._refs.set_checksums(staging.checksums)
        self._session.committed()
        if staging.all_missing:
            session.want_collection(self._store.root)

    def _take(self, source: LayerSource, staging: Staging, found: check.Survey) -> None:
        split_path = self._path()
        progress = self._progress
        report = None
        if progress is not None:
            told = progress

            def report(done: int) -> None:
                told(source.label, done, source.size)

        with contextlib.ExitStack() as stack:
            blob = stack.enter_context(contextlib.closing(source.open()))
            with (
                Stream(blob, source.label, report) as stream,
                open(split_path, "xb", opener=_read_only) as file,
            ):
                split = SplitWriter(file)
                builder = LayerBuilder(
                    staging,
                    source.label,
                    absolute_names=True,
                    split=split,
                    scratch=self._session.scratch,
                )
                stack.callback(builder.close)
                reader = TarReader(
                    stream, source.label, needs_end=source.needs_end, record=split.raw
                )
                tree = builder.apply_all(reader)
                if source.diff_id not in (None, stream.digest) or source.digest not in (
                    None,
                    stream.blob_digest,
                ):
                    raise _damaged(source)
                split.finish(stream.digest, stream.size)
            diff_id = stream.digest
            if diff_id in found.indexes:
                self._put_layer_index(diff_id, tree)
        if diff_id in found.splits and self._put(
            split_path, collect.split_path(self._store.root, diff_id)
        ):
            self.done.splits += 1


def _damaged(source: LayerSource) -> SourceInvalid:
    return SourceInvalid(f"{source.label}: has another digest than it should: take another source")


def _open(path: bytes) -> BinaryIO:
    return open(path, "rb", buffering=0)


def _read_only(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o444)
