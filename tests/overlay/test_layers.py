"""How layers combine: marks that the model's random layers do not have, and damage."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from layerstore.marks import TRUSTED, USER
from overlayfs_py.overlay.config import Config
from overlayfs_py.overlay.values import Changes
from tests.overlay.unions import ROOT, names, node, read, run, union, write


@contextmanager
def refused(number: int) -> Iterator[None]:
    with pytest.raises(OSError, match=re.escape(f"[Errno {number}]")) as caught:
        yield
    assert caught.value.errno == number


def test_a_metacopy_finds_its_data_in_a_data_only_layer(tmp_path: Path) -> None:
    lower, data = tmp_path / "lower", tmp_path / "data"
    lower.mkdir()
    (data / "ab").mkdir(parents=True)
    (data / "ab" / "cdef").write_bytes(b"the content")
    (lower / "f").write_bytes(b"")
    os.truncate(lower / "f", 11)
    os.setxattr(lower / "f", "trusted.overlay.metacopy", b"")
    os.setxattr(lower / "f", "trusted.overlay.redirect", b"/ab/cdef")
    with union(tmp_path, ["lower"], ["data"], Config(metacopy=True)) as overlay:
        assert names(overlay) == {b"f"}
        assert read(overlay, "f") == b"the content"
        run(overlay.setattr, node(overlay, "f"), Changes(mode=0o600), ROOT)
        assert os.listdir(tmp_path / "upper") == ["f"]
        assert os.getxattr(tmp_path / "upper" / "f", "trusted.overlay.metacopy") == b""
        assert read(overlay, "f") == b"the content"
        write(overlay, "f", b"THE")
        assert (tmp_path / "upper" / "f").read_bytes() == b"THE content"
        assert "trusted.overlay.metacopy" not in os.listxattr(tmp_path / "upper" / "f")


def test_a_metacopy_is_refused_where_metacopy_is_off(tmp_path: Path) -> None:
    lower = tmp_path / "lower"
    lower.mkdir()
    (lower / "f").write_bytes(b"")
    os.truncate(lower / "f", 11)
    os.setxattr(lower / "f", "trusted.overlay.metacopy", b"")
    with union(tmp_path, ["lower"]) as overlay:
        target = node(overlay, "f")
        for flags in (os.O_RDONLY, os.O_RDWR):
            with refused(errno.EPERM):
                run(overlay.open, target, flags, ROOT)


@pytest.mark.parametrize(
    "redirect", [b"/../../etc", b"..", b"/a//b", b"", b"x/y", b"/" + b"n" * 256]
)
def test_a_redirect_that_leads_nowhere_is_an_error(tmp_path: Path, redirect: bytes) -> None:
    (tmp_path / "lower" / "d").mkdir(parents=True)
    (tmp_path / "upper" / "d").mkdir(parents=True)
    os.setxattr(tmp_path / "upper" / "d", "trusted.overlay.redirect", redirect)
    with union(tmp_path, ["lower"]) as overlay, refused(errno.EINVAL):
        run(overlay.lookup, overlay.root, b"d")


def test_a_redirect_does_not_follow_symlinks_out_of_the_layer(tmp_path: Path) -> None:
    (tmp_path / "outside" / "secret").mkdir(parents=True)
    (tmp_path / "lower").mkdir()
    os.symlink(tmp_path / "outside", tmp_path / "lower" / "out")
    (tmp_path / "upper" / "d").mkdir(parents=True)
    os.setxattr(tmp_path / "upper" / "d", "trusted.overlay.redirect", b"/out/secret")
    with union(tmp_path, ["lower"]) as overlay:
        assert names(overlay, "d") == set()
        assert not node(overlay, "d").lowers


def test_redirects_are_refused_with_nofollow(tmp_path: Path) -> None:
    (tmp_path / "lower" / "old" / "x").mkdir(parents=True)
    (tmp_path / "upper" / "d").mkdir(parents=True)
    os.setxattr(tmp_path / "upper" / "d", "trusted.overlay.redirect", b"old")
    with (
        union(tmp_path, ["lower"], config=Config(redirect_dir="nofollow")) as overlay,
        refused(errno.EPERM),
    ):
        run(overlay.lookup, overlay.root, b"d")
    with union(tmp_path, ["lower"], config=Config(redirect_dir="off")) as overlay:
        assert names(overlay, "d") == {b"x"}
        with refused(errno.EXDEV):
            run(overlay.rename, overlay.root, b"d", overlay.root, b"e", 0, ROOT)


def test_redirects_through_renamed_parents_of_several_layers(tmp_path: Path) -> None:
    # bottom: a/b/c ; middle renamed a to x (relative), upper renames x/b to y (absolute).
    (tmp_path / "bottom" / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "middle" / "x").mkdir(parents=True)
    os.setxattr(tmp_path / "middle" / "x", "trusted.overlay.redirect", b"a")
    os.mknod(tmp_path / "middle" / "a", 0o20000, 0)
    with union(tmp_path, ["middle", "bottom"]) as overlay:
        assert names(overlay) == {b"x"}
        assert names(overlay, "x/b") == {b"c"}
        run(overlay.rename, node(overlay, "x"), b"b", overlay.root, b"y", 0, ROOT)
        assert names(overlay, "y") == {b"c"}
        assert names(overlay, "x") == set()
    with union(tmp_path, ["middle", "bottom"]) as overlay:
        assert names(overlay) == {b"x", b"y"}
        assert names(overlay, "y") == {b"c"}


def test_user_marks_are_ordinary_xattrs_of_a_trusted_mount(tmp_path: Path) -> None:
    (tmp_path / "lower" / "d" / "x").mkdir(parents=True)
    (tmp_path / "upper" / "d").mkdir(parents=True)
    os.setxattr(tmp_path / "upper" / "d", "user.overlay.opaque", b"y")
    with union(tmp_path, ["lower"]) as overlay:
        assert names(overlay, "d") == {b"x"}
        assert overlay.getxattr(node(overlay, "d"), b"user.overlay.opaque") == b"y"


def test_what_a_caller_writes_never_becomes_a_mark(tmp_path: Path) -> None:
    for marks in (USER, TRUSTED):
        where = tmp_path / marks.prefix.decode()
        (where / "lower" / "d" / "x").mkdir(parents=True)
        prefix = marks.prefix
        with union(where, ["lower"], marks=marks) as overlay:
            target = node(overlay, "d")
            for name in (b"opaque", b"redirect", b"overlay.opaque"):
                run(overlay.setxattr, target, prefix + name, b"y", 0, ROOT)
                assert prefix + name in overlay.listxattr(target)
            for name in (prefix + b"whiteout", b"user.fuseoverlayfs.opaque"):
                with refused(errno.EPERM):
                    run(overlay.setxattr, target, name, b"y", 0, ROOT)
        with union(where, ["lower"], marks=marks) as overlay:
            assert names(overlay, "d") == {b"x"}


def test_a_tree_deeper_than_a_path_may_be(tmp_path: Path) -> None:
    with union(tmp_path, ["lower"]) as overlay:
        parent = overlay.root
        name = b"d" * 250
        for _ in range(60):
            parent = run(overlay.mkdir, parent, name, 0o755, ROOT).node
        entry, handle = run(overlay.create, parent, b"f", os.O_RDWR, 0o644, ROOT)
        run(overlay.write, handle, 0, b"deep")
        run(overlay.release, handle)
        run(overlay.setxattr, entry.node, b"user.k", b"v", 0, ROOT)
        assert overlay.getxattr(entry.node, b"user.k") == b"v"
        run(overlay.rename, overlay.root, name, overlay.root, b"top", 0, ROOT)
        assert run(overlay.getattr, entry.node).size == 4
        run(overlay.unlink, parent, b"f", ROOT)
        while parent.parent is not None:
            above = parent.parent
            run(overlay.rmdir, above, parent.name, ROOT)
            parent = above
        assert names(overlay) == set()


def test_a_new_directory_moved_to_an_old_name_does_not_show_what_was_there(tmp_path: Path) -> None:
    """Regression: made where nothing lies below it, it was taken for marked opaque already."""
    (tmp_path / "lower" / "e" / "old").mkdir(parents=True)
    with union(tmp_path, ["lower"]) as overlay:
        root = overlay.root
        run(overlay.rename, root, b"e", root, b"f", 0, ROOT)
        plain = run(overlay.mkdir, root, b"plain", 0o755, ROOT).node
        run(overlay.mkdir, plain, b"new", 0o755, ROOT)
        run(overlay.rename, plain, b"new", root, b"e", 0, ROOT)
        assert names(overlay, "e") == set()
        assert names(overlay, "f") == {b"old"}
    with union(tmp_path, ["lower"]) as overlay:
        assert names(overlay, "e") == set()


def test_a_bad_redirect_on_the_way_is_an_error_too(tmp_path: Path) -> None:
    """Regression: met while following another redirect, it left a traceback."""
    (tmp_path / "lower" / "a" / "b").mkdir(parents=True)
    os.setxattr(tmp_path / "lower" / "a", "trusted.overlay.redirect", b"/x//y")
    (tmp_path / "upper" / "d").mkdir(parents=True)
    os.setxattr(tmp_path / "upper" / "d", "trusted.overlay.redirect", b"/a/b")
    with union(tmp_path, ["lower"]) as overlay, refused(errno.EINVAL):
        run(overlay.lookup, overlay.root, b"d")


def test_one_damaged_entry_does_not_hide_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "lower" / name).mkdir(parents=True)
    (tmp_path / "upper" / "b").mkdir(parents=True)
    os.setxattr(tmp_path / "upper" / "b", "trusted.overlay.redirect", b"/../x")
    with union(tmp_path, ["lower"]) as overlay:
        handle = overlay.opendir(overlay.root)
        listed = {row.name: entry for row, entry in run(overlay.readdirplus, handle, 0)}
    assert set(listed) == {b".", b"..", b"a", b"b", b"c"}
    assert listed[b"b"] is None
    assert "redirect" in caplog.text
    caplog.clear()
