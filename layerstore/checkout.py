"""Writes the tree of an image into a directory (see `tree_writer`). Blocks; one thread.

The tree is made under another name beside the directory and renamed when it is whole.

Without privilege (as with `umoci unpack --rootless`) everything belongs to who asked for it, devices
are left out, and so are xattrs that only root may set; `Written` counts them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from layerstore.errors import StoreError, show
from layerstore.index.reader import Index
from layerstore.store import Image, Store
from layerstore.tree_writer import MODES, TreeWriter, Written

if TYPE_CHECKING:
    from layerstore.importer import Progress


def checkout(
    store: Store,
    image: Image,
    directory: bytes | str | os.PathLike[str],
    mode: str = "auto",
    progress: Progress | None = None,
) -> Written:
    """Write the tree of an image.

    Args:
        store: that has it.
        image: of it.
        directory: new, or empty; what it is in must exist.
        mode: one of `MODES`.
        progress: told of files' bytes, as for an import.

    Raises:
        StoreError: it cannot be; then nothing is left.
    """
    if mode not in MODES:
        raise StoreError(f"{show(mode)} is no mode of checkout: it is one of {', '.join(MODES)}")
    target = os.path.abspath(os.fsencode(directory))
    with _beside(target) as made, Index(image.image_index) as index:
        tree = TreeWriter(index, store.objects(), made, mode)
        try:
            tree.write(lambda done: progress(image.name, done, None) if progress else None)
        except OSError as error:
            # Messages name the directory that was asked for, not the one that is gone by then.
            raise StoreError(f"{show(target)}: {show(tree.at)}: {error.strerror}") from None
        finally:
            tree.close()
        return tree.written


@contextlib.contextmanager
def _beside(target: bytes) -> Iterator[bytes]:
    """A new directory that becomes `target` if all goes well, and else is removed."""
    parent, name = os.path.split(target)
    if os.path.lexists(target) and (not os.path.isdir(target) or os.listdir(target)):
        raise StoreError(f"{show(target)}: is not an empty directory: name one, or a new one")
    try:
        made = tempfile.mkdtemp(dir=parent, prefix=b"." + name[:200] + b".")
    except OSError as error:
        raise StoreError(f"{show(parent)}: {error.strerror}: nothing can be made there") from None
    try:
        yield made
        try:
            os.rename(made, target)
        except OSError as error:
            raise StoreError(f"{show(target)}: {_why_not(error)}") from None
    except BaseException:
        _remove(made)
        raise


def _why_not(error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return "is a mountpoint: name a directory in it"
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
        return "somebody has put something there meanwhile"
    return error.strerror or "cannot be made"


def _remove(made: bytes) -> None:
    """Remove all of a tree, directories that nobody may enter included."""
    if os.geteuid() != 0:
        for path, _, _ in os.walk(made):
            for entry in os.scandir(path):
                if entry.is_dir(follow_symlinks=False):
                    os.chmod(entry.path, 0o700)
    shutil.rmtree(made, ignore_errors=True)
