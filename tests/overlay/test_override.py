"""xattr_permissions: owners, modes and kinds that are kept in an xattr, for who may not chown or mknod."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from layerstore.marks import USER
from overlayfs_py.layers.directory import DirectoryLayer
from overlayfs_py.layers.upper import Upper
from overlayfs_py.overlay.config import Config
from overlayfs_py.overlay.overlay import Overlay
from overlayfs_py.overlay.values import Caller, Changes

WHO = Caller(1000, 1001)


@contextmanager
def union(where: Path) -> Iterator[Overlay]:
    upper, work, lower = (os.fsencode(where / name) for name in ("upper", "work", "lower"))
    layers = [DirectoryLayer(lower, USER)]
    overlay = Overlay(Upper(upper, work, USER), [*layers], [], Config(xattr_permissions=2))
    try:
        yield overlay
    finally:
        overlay.close()


@pytest.fixture
def where(tmp_path: Path) -> Path:
    for name in ("upper", "work", "lower"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "lower" / "pipe", 0o600)
    return tmp_path


def test_what_is_made_is_found_again_as_it_was(where: Path) -> None:
    with union(where) as overlay:
        root = overlay.root
        overlay.mknod(root, b"disk", stat.S_IFBLK | 0o640, os.makedev(8, 1), WHO)
        overlay.mkdir(root, b"d", 0o2750, WHO)
        _, handle = overlay.create(root, b"f", os.O_RDWR, 0o4755, WHO)
        overlay.release(handle)
    assert stat.S_ISREG((where / "upper" / "disk").lstat().st_mode)
    assert stat.S_IMODE((where / "upper" / "f").lstat().st_mode) == 0o600
    with union(where) as overlay:
        expected = {
            b"disk": (stat.S_IFBLK | 0o640, os.makedev(8, 1)),
            b"d": (stat.S_IFDIR | 0o2750, 0),
            b"f": (stat.S_IFREG | 0o4755, 0),
        }
        for name, (mode, rdev) in expected.items():
            entry = overlay.lookup(overlay.root, name)
            assert entry is not None
            found = entry.attributes
            assert (found.mode, found.rdev if rdev else 0) == (mode, rdev)
            assert (found.uid, found.gid) == (WHO.uid, WHO.gid)


def test_a_special_file_is_copied_up_as_one_that_stands_for_it(where: Path) -> None:
    with union(where) as overlay:
        entry = overlay.lookup(overlay.root, b"pipe")
        assert entry is not None
        after = overlay.setattr(entry.node, Changes(uid=7, mode=0o622), WHO)
        assert (after.mode, after.uid) == (stat.S_IFIFO | 0o622, 7)
        assert after.ino == entry.attributes.ino
    assert stat.S_ISREG((where / "upper" / "pipe").lstat().st_mode)


def test_chown_clears_setuid(where: Path) -> None:
    with union(where) as overlay:
        _, handle = overlay.create(overlay.root, b"f", os.O_RDWR, 0o4755, WHO)
        overlay.release(handle)
        assert overlay.setattr(handle.node, Changes(uid=3), WHO).mode & 0o7777 == 0o755
