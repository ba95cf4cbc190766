"""What the tests of commit share: a store with a base, and an upper directory over it."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from layerstore.commit.base import Base
from layerstore.commit.changes import UpperTar
from layerstore.commit.committing import Committed, commit
from layerstore.commit.config import Description
from layerstore.commit.upper import Upper
from layerstore.index.reader import Index
from layerstore.marks import USER
from layerstore.store import Image, Store
from tests.layerstore.archives import Item, folder, hard_link, layout_of, tar_of

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="devices and trusted.* xattrs need root")

BASE = tar_of(
    [
        folder("etc", 0o755, mtime=1.5),
        Item("etc/hostname", b"base\n"),
        Item("etc/big", b"B" * 5000, mode=0o600, uid=7, gid=8),
        hard_link("etc/big-link", "etc/big"),
        folder("gone", 0o700, uid=3),
        Item("gone/file", b"G" * 3000),
        folder("gone/deep"),
        Item("gone/deep/leaf", b"leaf"),
        hard_link("gone/deep/big", "etc/big"),
    ]
)


class Place:
    """A store with an image `base`, and an upper directory."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "store"
        self.upper = directory / "upper"
        self.upper.mkdir()
        self.work = directory / "work"
        (self.work / "index").mkdir(parents=True)
        source = layout_of([BASE]).archive(directory / "base.tar")
        self.store = Store.open(str(self.root), create=True)
        self.base = self.store.import_image(source, "base")

    def mark(self, name: str, mark: bytes, value: bytes) -> None:
        os.setxattr(self.upper / name, mark, value)

    def tar(self, *, work: bool = False, base: bool = True) -> tarfile.TarFile:
        """The layer that the upper is."""
        upper = Upper(os.fsencode(self.upper), os.fsencode(self.work) if work else None, USER)
        with Index(self.base.image_index) as index:
            below = Base(index, self.store.objects()) if base else None
            stream = UpperTar(upper, below)
            data = b"".join(iter(lambda: stream.read(1 << 20), b""))
        return tarfile.open(fileobj=io.BytesIO(data))

    def names(self, **how: bool) -> list[str]:
        """Its entries; ` -> ` before what a hard link is a link to."""
        return [
            f"{entry.name} -> {entry.linkname}" if entry.islnk() else entry.name
            for entry in self.tar(**how)
        ]

    def commit(self, base: str | None = "base") -> Image:
        what = Committed(os.fsencode(self.upper), None, base, "the upper", userxattr=True)
        return commit(self.store, what, Description(1, "test"))
