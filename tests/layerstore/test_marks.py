"""Overlay marks: every value the kernel accepts is read, every other refused, and formatting is the
inverse.
"""

from __future__ import annotations

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerstore import marks
from layerstore.marks import (
    FUSE_OVERLAYFS,
    TRUSTED,
    USER,
    Handle,
    MarkInvalid,
    Metacopy,
    OverrideStat,
    Redirect,
)


def test_names() -> None:
    assert TRUSTED.opaque == b"trusted.overlay.opaque"
    assert USER.redirect == b"user.overlay.redirect"
    assert FUSE_OVERLAYFS.override_stat == marks.FUSE_OVERLAYFS_OVERRIDE_STAT


@pytest.mark.parametrize(
    ("stored", "private", "shown"),
    [
        (b"trusted.overlay.opaque", True, None),
        (b"trusted.overlay.unknown", True, None),
        (b"trusted.overlay.overlay.opaque", False, b"trusted.overlay.opaque"),
        (b"trusted.overlay.overlay.overlay.x", False, b"trusted.overlay.overlay.x"),
        (b"user.overlay.opaque", False, b"user.overlay.opaque"),
        (b"trusted.overlayx", False, b"trusted.overlayx"),
    ],
)
def test_what_users_see(stored: bytes, private: bool, shown: bytes | None) -> None:
    assert TRUSTED.is_private(stored) is private
    if shown is not None:
        assert TRUSTED.unescape(stored) == shown
        assert TRUSTED.escape(shown) == stored


@given(st.binary(max_size=60), st.sampled_from([TRUSTED, USER, FUSE_OVERLAYFS]))
def test_escape_is_undone(tail: bytes, which: marks.Marks) -> None:
    for name in (tail, which.prefix + tail, which.escape_prefix + tail):
        stored = which.escape(name)
        assert not which.is_private(stored)
        assert which.unescape(stored) == name


def test_escape_refuses_names_that_grow_too_long() -> None:
    name = TRUSTED.prefix + b"n" * (255 - len(TRUSTED.prefix))
    with pytest.raises(MarkInvalid):
        TRUSTED.escape(name)


def test_device_whiteout() -> None:
    assert marks.is_device_whiteout(stat.S_IFCHR | 0o600, 0)
    assert not marks.is_device_whiteout(stat.S_IFCHR, os.makedev(1, 3))
    assert not marks.is_device_whiteout(stat.S_IFBLK, 0)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        (b".wh.foo", b"foo"),
        (b".wh..foo", b".foo"),
        (b".wh.", None),
        (b".wh..", None),
        (b".wh...", None),
        (b".wh..wh..opq", None),
        (b".wh..wh.plnk", None),
        (b".wh.\xff", b"\xff"),
        (b"wh.foo", None),
    ],
)
def test_oci_whiteouts(name: bytes, target: bytes | None) -> None:
    assert marks.oci_whiteout_target(name) == target


@pytest.mark.parametrize(
    ("value", "redirect"),
    [
        (b"name", Redirect(False, (b"name",))),
        (b"/a/b", Redirect(True, (b"a", b"b"))),
        (b"/a\0tail", Redirect(True, (b"a",))),
        (b"/" + b"x" * 255, Redirect(True, (b"x" * 255,))),
    ],
)
def test_redirect(value: bytes, redirect: Redirect) -> None:
    assert marks.parse_redirect(value) == redirect


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\0",
        b"/",
        b"//a",
        b"/a//b",
        b"/a/",
        b"a/b",
        b".",
        b"..",
        b"/a/../b",
        b"/" + b"x" * 256,
        b"/ab" * 2000,
    ],
)
def test_redirect_refused(value: bytes) -> None:
    with pytest.raises(MarkInvalid):
        marks.parse_redirect(value)


@given(st.binary(max_size=80))
def test_redirect_round_trip(value: bytes) -> None:
    try:
        redirect = marks.parse_redirect(value)
    except MarkInvalid:
        return
    assert marks.format_redirect(redirect) == value.split(b"\0")[0]


@given(st.binary(max_size=80))
def test_metacopy_takes_only_what_it_formats(value: bytes) -> None:
    try:
        metacopy = marks.parse_metacopy(value)
    except MarkInvalid:
        return
    if metacopy.digest:
        assert marks.format_metacopy(metacopy) == value


def test_metacopy() -> None:
    digest = bytes(range(32))
    assert marks.parse_metacopy(b"") == Metacopy(0, b"")
    assert marks.parse_metacopy(b"\x00\x24\x00\x01" + digest) == Metacopy(1, digest)
    for bad in (b"\0", b"\x01\x04\0\0", b"\0\x05\0\0", b"\0\x04\x01\0", b"\0\x24\0\x01"):
        with pytest.raises(MarkInvalid):
            marks.parse_metacopy(bad)


@given(
    st.integers(0, 255), st.binary(min_size=16, max_size=16), st.binary(max_size=128), st.booleans()
)
def test_handle_round_trip(kind: int, uuid: bytes, fid: bytes, upper: bool) -> None:
    handle = Handle(kind, uuid, fid, upper)
    assert marks.parse_handle(marks.format_handle(handle)) == handle


@given(st.binary(max_size=60))
def test_handle_takes_any_bytes(value: bytes) -> None:
    try:
        marks.parse_handle(value)
        marks.parse_handle(b"\0\xfb" + value)
    except MarkInvalid:
        pass


def test_handle_of_a_newer_kernel_is_unknown_not_an_error() -> None:
    value = bytearray(marks.format_handle(Handle(1, bytes(16), b"abcd")))
    value[0] = 1
    assert marks.parse_handle(bytes(value)) is None


@pytest.mark.parametrize(("value", "count"), [(b"U+1", 4), (b"L-1", 6), (b"U-3", 0), (b"L+0", 7)])
def test_nlink(value: bytes, count: int) -> None:
    assert marks.parse_nlink(value, upper_nlink=3, lower_nlink=7) == count


@pytest.mark.parametrize("value", [b"", b"U", b"U1", b"X+1", b"U-4", b"U+", b"U+1x", b"U+-1"])
def test_nlink_refused(value: bytes) -> None:
    with pytest.raises(MarkInvalid):
        marks.parse_nlink(value, 3, 7)


def test_nlink_format() -> None:
    assert marks.format_nlink(5, 3, upper=True) == b"U+2"
    assert marks.format_nlink(1, 3, upper=False) == b"L-2"
    assert marks.format_nlink(3, 3, upper=True) == b"U+0"


@pytest.mark.parametrize(
    ("value", "override"),
    [
        (b"0:0:0755", OverrideStat(0, 0, 0o755)),
        (b"1000:100:4755:file", OverrideStat(1000, 100, 0o4755, stat.S_IFREG)),
        (b"0:0:0100755", OverrideStat(0, 0, 0o755, stat.S_IFREG)),
        (b"0:6:0660:block-8-17", OverrideStat(0, 6, 0o660, stat.S_IFBLK, 8, 17)),
        (b"0:5:0666:char-5-0", OverrideStat(0, 5, 0o666, stat.S_IFCHR, 5, 0)),
        (b"0:0:0777:symlink", OverrideStat(0, 0, 0o777, stat.S_IFLNK)),
    ],
)
def test_override_stat(value: bytes, override: OverrideStat) -> None:
    assert marks.parse_override_stat(value) == override
    assert marks.parse_override_stat(marks.format_override_stat(override)) == override


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"0:0",
        b"0:0:9",
        b"a:0:7",
        b"-1:0:7",
        b"0:0:755:door",
        b"0:0:755:char",
        b"0:0:755:char-1",
        b"0:0:755:file-1-2",
        b"4294967296:0:755",
        b"0:0:755:file:more",
    ],
)
def test_override_stat_refused(value: bytes) -> None:
    with pytest.raises(MarkInvalid):
        marks.parse_override_stat(value)
