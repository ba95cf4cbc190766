"""What a commit makes of an upper directory, entry by entry.

That the image shows what the mount showed is tests/interop/test_commit.py.
"""

from __future__ import annotations

import os
import socket
import stat

import pytest

from layerstore import marks
from layerstore.commit.committing import Committed, commit
from layerstore.commit.config import Description
from layerstore.index import handles
from layerstore.index.reader import Index
from layerstore.marks import USER, format_handle
from tests.layerstore.uppers import Place, needs_root


def test_only_what_the_upper_has(place: Place) -> None:
    (place.upper / "etc").mkdir()
    (place.upper / "etc/new").write_bytes(b"new")
    os.utime(place.upper / "etc/new", ns=(0, 1_234_567_890_123_456_789))
    assert place.names() == [".", "etc", "etc/new"]
    entry = place.tar().getmember("etc/new")
    assert entry.pax_headers["mtime"] == "1234567890.123456789"
    assert not any(entry.pax_headers for entry in place.tar() if "xattr" in entry.pax_headers)


@needs_root
def test_a_whiteout_in_each_form(place: Place) -> None:
    (place.upper / "etc").mkdir()
    os.mknod(place.upper / "etc/hostname", stat.S_IFCHR, 0)
    (place.upper / "etc/big").touch()
    place.mark("etc/big", USER.whiteout, b"y")
    place.mark("etc", USER.opaque, b"x")
    (place.upper / ".wh.gone").touch()
    os.mknod(place.upper / "never", stat.S_IFCHR, 0)
    assert place.names() == [".", "etc", "etc/.wh.big", "etc/.wh.hostname", ".wh.gone"]


@pytest.mark.parametrize("form", ["overlay", "fuse-overlayfs", "oci"])
def test_an_opaque_directory_names_what_it_hides(place: Place, form: str) -> None:
    (place.upper / "etc").mkdir()
    (place.upper / "etc/big").write_bytes(b"mine")
    if form == "overlay":
        place.mark("etc", USER.opaque, b"y")
    elif form == "fuse-overlayfs":
        place.mark("etc", marks.FUSE_OVERLAYFS.opaque, b"y")
    else:
        (place.upper / "etc/.wh..wh..opq").touch()
    assert place.names() == [".", "etc", "etc/big", "etc/.wh.big-link", "etc/.wh.hostname"]


def test_a_renamed_directory_is_written_whole(place: Place) -> None:
    (place.upper / ".wh.gone").touch()
    (place.upper / "here").mkdir(0o700)
    place.mark("here", USER.redirect, b"gone")
    (place.upper / "here/file").write_bytes(b"changed")
    assert place.names() == [
        *(".", ".wh.gone", "here", "here/deep", "here/deep/big", "here/deep/leaf", "here/file"),
        # The hard links stay links; the parent is as the base has it, so that no engine makes it.
        *("etc", "etc/big -> here/deep/big", "etc/big-link -> here/deep/big"),
    ]
    tar = place.tar()
    assert (tar.getmember("here/deep/big").uid, tar.getmember("here/deep/big").mode) == (7, 0o600)
    assert tar.extractfile("here/deep/big").read() == b"B" * 5000  # type: ignore[union-attr]
    assert tar.extractfile("here/file").read() == b"changed"  # type: ignore[union-attr]


def test_redirects_on_the_way_and_from_the_root(place: Place) -> None:
    (place.upper / "a/b").mkdir(parents=True)
    place.mark("a", USER.redirect, b"gone")
    place.mark("a/b", USER.redirect, b"deep")
    (place.upper / "c").mkdir()
    place.mark("c", USER.redirect, b"/gone/deep")
    assert place.names()[:9] == [
        *(".", "a", "a/b", "a/b/big", "a/b/leaf", "a/deep", "a/deep/big -> a/b/big"),
        *("a/deep/leaf", "a/file"),
    ]


def test_a_renamed_directory_over_another(place: Place) -> None:
    (place.upper / ".wh.gone").touch()
    (place.upper / "etc").mkdir()
    place.mark("etc", USER.redirect, b"gone")
    assert place.names() == [
        *(".", "etc", "etc/.wh.big", "etc/.wh.big-link", "etc/deep", "etc/deep/big"),
        *("etc/deep/leaf", "etc/file", "etc/.wh.hostname", ".wh.gone"),
    ]


def test_a_metacopy_has_the_data_of_the_base(place: Place) -> None:
    (place.upper / "etc").mkdir()
    with (place.upper / "etc/renamed").open("wb") as file:
        file.truncate(3000)
    place.mark("etc/renamed", USER.metacopy, b"")
    place.mark("etc/renamed", USER.redirect, b"/gone/file")
    os.chmod(place.upper / "etc/renamed", 0o751)
    before = len(list(place.store.objects()))
    entry = place.tar().getmember("etc/renamed")
    assert place.tar().extractfile(entry).read() == b"G" * 3000  # type: ignore[union-attr]
    assert entry.mode == 0o751
    place.commit()
    assert len(list(place.store.objects())) == before


def test_hard_links_in_the_upper(place: Place) -> None:
    (place.upper / "one").write_bytes(b"1")
    os.link(place.upper / "one", place.upper / "two")
    os.symlink("one", place.upper / "soft")
    os.link(place.upper / "soft", place.upper / "softer", follow_symlinks=False)
    assert place.names() == [".", "one", "soft", "softer -> soft", "two -> one"]


@pytest.mark.parametrize("in_upper", [True, False])
def test_names_of_a_hard_link_that_the_upper_has_not_seen(place: Place, in_upper: bool) -> None:
    with Index(place.base.image_index) as index:
        etc = index.lookup(index.root_nid, b"etc")
        assert etc is not None
        nid = index.lookup(etc, b"big")
        assert nid is not None
    handle = format_handle(handles.handle_of(handles.identity(place.base.image_index), nid))
    indexed = place.work / "index" / handle.hex()
    indexed.write_bytes(b"changed")
    (place.upper / "etc").mkdir()
    if in_upper:
        os.link(indexed, place.upper / "etc/big-link")
    else:
        (place.upper / "etc/.wh.big-link").touch()
    first = "etc/big-link" if in_upper else "etc/big"
    tar = place.tar(work=True)
    assert tar.extractfile(first).read() == b"changed"  # type: ignore[union-attr]
    added = ["etc/big -> etc/big-link", "gone", "gone/deep", "gone/deep/big -> etc/big-link"]
    if not in_upper:
        added = ["etc/big", "gone", "gone/deep", "gone/deep/big -> etc/big"]
    known = "etc/big-link" if in_upper else "etc/.wh.big-link"
    assert place.names(work=True) == [".", "etc", known, *added]
    assert place.tar(work=True).getmember("gone").uid == 3
    assert place.names() == [".", "etc", known]


def test_marks_are_dropped_and_escaped_ones_are_content(place: Place) -> None:
    (place.upper / "file").write_bytes(b"x")
    for name in ("origin", "nlink", "protattr", "impure", "uuid"):
        place.mark("file", USER.prefix + name.encode(), b"U+1")
    place.mark("file", USER.escape(b"user.overlay.opaque"), b"y")
    place.mark("file", b"user.own", b"1")
    xattrs = {
        key.removeprefix("SCHILY.xattr."): value
        for key, value in place.tar().getmember("file").pax_headers.items()
        if key.startswith("SCHILY.xattr.")
    }
    assert xattrs == {"user.overlay.opaque": "y", "user.own": "1"}


def test_owners_and_modes_in_xattrs(place: Place) -> None:
    override = marks.CONTAINERS_OVERRIDE_STAT
    (place.upper / "file").write_bytes(b"x")
    (place.upper / "null").write_bytes(b"")
    os.setxattr(place.upper, override, b"1:2:0711")
    place.mark("file", override, b"1000:1001:4755")
    place.mark("null", override, b"0:0:0666:char-1-3")
    tar = place.tar()
    root, file, null = (tar.getmember(name) for name in (".", "file", "null"))
    assert (root.uid, root.gid, root.mode) == (1, 2, 0o711)
    assert (file.uid, file.gid, file.mode) == (1000, 1001, 0o4755)
    assert (null.ischr(), null.devmajor, null.devminor) == (True, 1, 3)
    assert not any("override" in key for entry in tar for key in entry.pax_headers)


def test_sockets_are_left_out(place: Place) -> None:
    (place.upper / "etc").mkdir()
    os.chdir(place.upper / "etc")
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        one.bind("new")
        other.bind("hostname")
    assert place.names() == [".", "etc", "etc/.wh.hostname"]


def test_the_family_of_marks_is_found_in_the_upper(place: Place) -> None:
    (place.upper / "etc").mkdir()
    place.mark("etc", USER.redirect, b"gone")
    place.mark("", USER.impure, b"y")
    what = Committed(os.fsencode(place.upper), None, "base", "the upper")
    with Index(commit(place.store, what, Description(1, "test")).image_index) as index:
        etc = index.lookup(index.root_nid, b"etc")
        assert etc is not None
        assert index.lookup(etc, b"file") is not None
