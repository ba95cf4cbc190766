"""Real unions without a mount, for those who put requests in by hand."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from layerstore.store import Store
from overlayfs_py.mount import build
from overlayfs_py.options import MountOptions
from overlayfs_py.overlay.overlay import Overlay
from tests.layerstore.archives import Item, folder, symlink, tar_of
from tests.wire.device import arbitrary

KINDS = ("directories", "read-only", "image")
_FILE_BYTES = 1 << 24
"""As large as a file may become."""


@contextmanager
def union(kind: str, directory: str) -> Iterator[Overlay]:
    """A union of `kind` over files in `directory`, which is empty; files in it stay of bounded size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    options = MountOptions(fsync=False)
    if kind == "image":
        _image(options, directory)
    else:
        options.lowerdirs = [os.fsencode(_layer(directory, name)) for name in ("top", "base")]
    if kind != "read-only":
        options.upperdir, options.workdir = (
            os.fsencode(_made(directory, name)) for name in ("upper", "work")
        )
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, before[1]))
    overlay = build(options)
    try:
        yield overlay
    finally:
        overlay.close()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _made(directory: str, name: str) -> str:
    path = os.path.join(directory, name)
    os.mkdir(path)
    return path


def _layer(directory: str, name: str) -> str:
    path = _made(directory, name)
    os.mkdir(os.path.join(path, "dir"))
    for file in ("a", "dir/c") if name == "top" else ("a", "b", "dir/c", "dir/d"):
        with open(os.path.join(path, file), "wb") as opened:
            opened.write(name.encode() * 1000)
    for number in range(arbitrary.MANY):
        place = path if number % 2 else os.path.join(path, "dir")
        with open(os.path.join(place, f"f{number}"), "wb") as opened:
            opened.write(name.encode() * number)
    if name == "base":
        os.symlink("dir/c", os.path.join(path, "link"))
        os.link(os.path.join(path, "b"), os.path.join(path, "dir", "b"))
    return path


def _image(options: MountOptions, directory: str) -> None:
    """Contents that are kept inline, in an object and in several blocks; a directory of many names."""
    items = [
        folder("dir"),
        Item("a", b"small"),
        Item("b", b"b" * 7000, mode=0o4755),
        Item("dir/c", b"c" * 300_000, xattrs={"user.x": "value"}),
        symlink("link", "dir/c"),
        *(Item(f"f{number}", b"f" * number) for number in range(arbitrary.MANY)),
        *(Item(f"dir/f{number}", b"") for number in range(arbitrary.MANY)),
    ]
    archive = Path(directory, "image.tar")
    archive.write_bytes(tar_of(items))
    root = os.path.join(directory, "store")
    with Store.open(root, create=True) as store:
        store.import_image(f"tar:{archive}", "fuzzed")
    options.image, options.store_root = "fuzzed", os.fsencode(root)
