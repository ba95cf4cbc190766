"""What `which` is told of uppers that the kernel's overlayfs wrote: redirects, metacopy, opaque directories."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerstore.marks import TRUSTED
from overlayfs_py import mount_flags
from overlayfs_py.errors import UserError
from overlayfs_py.inspect import open_stack
from overlayfs_py.inspect.stack import DATA, LOWER, UPPER, Piece, Shown, Source, Stack
from overlayfs_py.layers.directory import DirectoryLayer

pytestmark = pytest.mark.mount


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Two lowers, and an upper in which the kernel renamed, chmodded and replaced."""
    for name in ("l1/dir/sub", "l2/dir", "l2/old", "u", "w", "m"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "l1/dir/file").write_text("one")
    (tmp_path / "l2/dir/file").write_text("two")
    (tmp_path / "l2/dir/gone").write_text("two")
    (tmp_path / "l2/old/file").write_text("two")
    options = (
        f"lowerdir={tmp_path}/l1:{tmp_path}/l2,upperdir={tmp_path}/u,workdir={tmp_path}/w,"
        "redirect_dir=on,metacopy=on"
    )
    merged = tmp_path / "m"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
    try:
        os.chmod(merged / "dir/file", 0o600)
        (merged / "dir/gone").unlink()
        os.rename(merged / "dir", merged / "moved")
        subprocess.run(["rm", "-r", merged / "old"], check=True)
        (merged / "old").mkdir()
    finally:
        mount_flags.umount(os.fsencode(merged))
    return tmp_path


@pytest.fixture
def stack(base: Path) -> Iterator[Stack]:
    opened = open_stack.of_upper(
        os.fsencode(base / "u"), [os.fsencode(base / "l1"), os.fsencode(base / "l2")]
    )
    yield opened
    opened.close()


def places(pieces: tuple[Piece, ...]) -> list[tuple[int, bytes]]:
    return [piece.key for piece in pieces]


def test_a_renamed_directory_merges_with_what_it_was(stack: Stack) -> None:
    assert places(stack.at(b"moved").pieces) == [(0, b"moved"), (1, b"dir"), (2, b"dir")]
    assert places(stack.at(b"moved/sub").pieces) == [(1, b"dir/sub")]


def test_a_metacopys_content_is_below(stack: Stack) -> None:
    parent = stack.at(b"moved")
    shown = stack.at(b"moved/file")
    assert shown.top.found.metacopy
    assert places(shown.shadowed) == [(1, b"dir/file"), (2, b"dir/file")]
    data = stack.data(parent, shown.top)
    assert data is not None
    assert data.key == (1, b"dir/file")


def test_a_removed_path_names_its_whiteout(stack: Stack) -> None:
    assert stack.at(b"moved/gone") == Shown((), whiteout=0)
    assert stack.at(b"dir").whiteout == 0
    assert stack.at(b"nowhere") == Shown(())
    assert stack.at(b"moved/file/below") == Shown(())


def test_an_opaque_directory_shadows(stack: Stack) -> None:
    shown = stack.at(b"old")
    assert places(shown.pieces) == [(0, b"old")]
    assert places(shown.shadowed) == [(2, b"old")]
    assert stack.at(b"old/file") == Shown(())


def test_content_in_a_data_only_layer(base: Path) -> None:
    (base / "data/ab").mkdir(parents=True)
    (base / "data/ab/cdef").write_text("content")
    (base / "l1/far").touch()
    os.setxattr(base / "l1/far", "trusted.overlay.metacopy", b"")
    os.setxattr(base / "l1/far", "trusted.overlay.redirect", b"/ab/cdef")
    sources = [
        Source(kind, number, name, DirectoryLayer(os.fsencode(base / name), TRUSTED))
        for number, (kind, name) in enumerate([(UPPER, "u"), (LOWER, "l1"), (DATA, "data")])
    ]
    for source in sources:
        source.layer.follows_metacopy = True  # type: ignore[attr-defined]
    stack = Stack(sources)
    data = stack.data(stack.root(), stack.at(b"far").top)
    assert data is not None
    assert (stack.source(data).kind, data.path) == (DATA, b"ab/cdef")
    assert stack.at(b"ab") == Shown(())
    stack.close()


@pytest.mark.parametrize("redirect", [b"../dir", b"/a/../b", b""])
def test_a_redirect_that_makes_no_sense_is_named(base: Path, stack: Stack, redirect: bytes) -> None:
    os.setxattr(base / "u/moved", "trusted.overlay.redirect", redirect)
    with pytest.raises(UserError, match=r"u/moved: redirect .* damaged"):
        stack.at(b"moved")
