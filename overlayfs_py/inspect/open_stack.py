"""Opens the layers of a live mount, or of an upper directory that nobody mounts."""

from __future__ import annotations

import os

from layerstore.marks import TRUSTED, USER, Marks
from overlayfs_py import mountinfo, registry
from overlayfs_py.errors import UserError
from overlayfs_py.inspect.stack import DATA, LOWER, UPPER, Source, Stack
from overlayfs_py.layers.directory import DirectoryLayer
from overlayfs_py.registry import Record


def record_at(path: bytes) -> Record | None:
    """The live mount that has `path` as mountpoint or as upper directory."""
    real = mountinfo.real_path(path)
    entry = mountinfo.top(real)
    if entry is not None and (record := registry.find(real, os.fsdecode(entry.device))):
        return record
    try:
        identity = registry.identity(path)
    except OSError:
        return None
    for record in registry.live():
        if record.upper_id == identity:
            return record
    return None


def of_record(record: Record) -> Stack:
    """The layers of a live mount.

    Raises:
        UserError: one of them cannot be read.
    """
    marks = _marks(record.userxattr, record.upperdir)
    sources: list[Source] = []
    if record.upperdir is not None:
        sources.append(_directory(UPPER, 0, record.upperdir, marks))
    if record.image is not None:
        sources += _image(record, marks)
    for number, path in enumerate(record.lowerdirs, 1):
        sources.append(_directory(LOWER, number, path, marks))
    for number, path in enumerate(record.data_lowerdirs, len(record.lowerdirs) + 1):
        sources.append(_directory(DATA, number, path, marks))
    return Stack(sources, follow=record.redirect_dir != "nofollow")


def of_upper(path: bytes, lowers: list[bytes]) -> Stack:
    """An upper directory, and the lower ones it belongs to, top first.

    Raises:
        UserError: one of them cannot be read.
    """
    marks = _marks(None, path)
    sources = [_directory(UPPER, 0, path, marks)]
    for number, lower in enumerate(lowers, 1):
        sources.append(_directory(LOWER, number, lower, marks))
    return Stack(sources)


def _directory(kind: str, number: int, path: bytes, marks: Marks) -> Source:
    try:
        layer = DirectoryLayer(path, marks)
        # The marks of every file are wanted here, whatever the mount makes of them.
        layer.follows_metacopy = True
    except OSError as error:
        raise UserError(
            f"{kind} directory {os.fsdecode(path)} cannot be read: {error.strerror}"
        ) from None
    return Source(kind, number, os.fsdecode(path), layer)


def _image(record: Record, marks: Marks) -> list[Source]:
    from layerstore.errors import StoreError
    from layerstore.index.reader import Index
    from layerstore.store import Store
    from overlayfs_py.layers.image import ImageLayer

    assert record.image is not None
    try:
        store = Store.open(record.store_root, create=False)
        image = store.resolve(record.image)
        return [
            Source(LOWER, number, layer.diff_id, ImageLayer(Index(index), store.objects_dir, marks))
            for number, (layer, index) in enumerate(
                # Manifests count layers from the bottom.
                reversed(list(zip(image.layers, image.layer_indexes, strict=True))),
                1,
            )
        ]
    except StoreError as error:
        raise UserError(str(error)) from None


def _marks(userxattr: bool | None, upper: bytes | None) -> Marks:
    """Which family of marks the layers carry: said, or found in the upper, else by privilege."""
    if userxattr is None and upper is not None:
        userxattr = _family(upper)
    if userxattr is None:
        userxattr = os.geteuid() != 0
    return USER if userxattr else TRUSTED


def _family(upper: bytes) -> bool | None:
    """True where the first mark in the tree is a user.overlay one, False for trusted.overlay, None
    without marks.
    """
    prefixes = {TRUSTED.prefix.decode(): False, USER.prefix.decode(): True}
    pending = [upper]
    while pending:
        directory = pending.pop()
        try:
            entries = list(os.scandir(directory))
        except OSError:
            continue
        for path in [directory, *(entry.path for entry in entries)]:
            for name in _names(path):
                for prefix, user in prefixes.items():
                    if name.startswith(prefix):
                        return user
        pending += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    return None


def _names(path: bytes) -> list[str]:
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError:
        return []
