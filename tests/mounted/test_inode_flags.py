"""chattr(1), project ids, and what append-only and immutable objects refuse."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.mounted.slots import CONTENT, Slot
from tests.mounted.subject import SUBJECTS, Subject
from tests.mounted.users import ALICE, errno_of, user_errno

GETFLAGS, SETFLAGS = 0x80086601, 0x40086602
FSGETXATTR, FSSETXATTR = 0x801C581F, 0x401C5820
IMMUTABLE, APPEND, NODUMP, NOATIME = 0x10, 0x20, 0x40, 0x80
SHOWN = IMMUTABLE | APPEND | NODUMP | NOATIME
"""Others are the filesystem's own affair (extents, inline data)."""
FSXATTR = struct.Struct("IIIII8x")

HAVE_THEM = [name for name, kind in SUBJECTS.items() if "inode_flags" not in kind.limits]
pytestmark = pytest.mark.parametrize("subject", HAVE_THEM, indirect=True, scope="module")
"""That the others have none is asserted in test_limits."""

_libc = ctypes.CDLL(None, use_errno=True)


def flags(path: os.PathLike[str]) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        found: int = struct.unpack("I", fcntl.ioctl(fd, GETFLAGS, bytes(4)))[0]
        return found & SHOWN
    finally:
        os.close(fd)


def set_flags(path: os.PathLike[str], wanted: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        others = struct.unpack("I", fcntl.ioctl(fd, GETFLAGS, bytes(4)))[0] & ~SHOWN
        fcntl.ioctl(fd, SETFLAGS, struct.pack("I", others | wanted))
    finally:
        os.close(fd)


def fsxattr(path: os.PathLike[str]) -> tuple[int, ...]:
    fd = os.open(path, os.O_RDONLY)
    try:
        return FSXATTR.unpack(fcntl.ioctl(fd, FSGETXATTR, bytes(FSXATTR.size)))
    finally:
        os.close(fd)


def set_fsxattr(path: os.PathLike[str], xflags: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        values = FSXATTR.unpack(fcntl.ioctl(fd, FSGETXATTR, bytes(FSXATTR.size)))
        fcntl.ioctl(fd, FSSETXATTR, FSXATTR.pack(xflags, *values[1:]))
    finally:
        os.close(fd)


@pytest.mark.parametrize("name", ["file", "full", "hard1"])
def test_flags_are_set_shown_and_kept(slot: Slot, subject: Subject, name: str) -> None:
    path = slot / name
    assert flags(path) == 0
    before = os.stat(path)
    set_flags(path, NODUMP)
    assert flags(path) == NODUMP
    subject.forget()
    assert flags(path) == NODUMP
    after = os.stat(path)
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (
        before.st_ino, before.st_size, before.st_mtime_ns,
    )  # fmt: skip
    assert after.st_ctime_ns > before.st_ctime_ns
    set_flags(path, 0)
    assert flags(path) == 0


@pytest.mark.parametrize("name", ["file", "full"])
@pytest.mark.parametrize(("flag", "xflag"), [(NODUMP, 0x80), (IMMUTABLE, 0x08), (APPEND, 0x10)])
def test_both_interfaces_say_the_same(
    slot: Slot, subject: Subject, name: str, flag: int, xflag: int
) -> None:
    path = slot / name
    set_flags(path, flag)
    try:
        assert fsxattr(path)[0] & xflag
        set_fsxattr(path, 0)
        assert flags(path) == 0
        set_fsxattr(path, xflag)
        assert flags(path) == flag
    finally:
        set_flags(path, 0)


@pytest.mark.parametrize("name", ["file", "full"])
@pytest.mark.parametrize(("flag", "letter"), [(IMMUTABLE, b"i"), (APPEND, b"a")])
def test_protection_is_kept_in_the_mark_of_the_kernel(
    slot: Slot, subject: Subject, name: str, flag: int, letter: bytes
) -> None:
    real = subject.upper / slot.dir.name / name
    set_flags(slot / name, flag)
    try:
        assert os.getxattr(real, "trusted.overlay.protattr") == letter
        assert flags(real) == 0
        assert "protattr" not in str(os.listxattr(slot / name))
        subject.remount()
        assert flags(slot / name) == flag
    finally:
        set_flags(slot / name, 0)
    assert errno_of(os.getxattr, real, "trusted.overlay.protattr") == "ENODATA"


def _utime(path: Path) -> None:
    os.utime(path, ns=(1, 2))


def _write(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY))


def _append(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"more")
    os.close(fd)


def _truncated(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_APPEND))


def _linked(path: Path) -> None:
    os.link(path, path.parent / "linked")


def _renamed(path: Path) -> None:
    os.rename(path, path.parent / "renamed")


def _replaced(path: Path) -> None:
    os.rename(path.parent / "other", path)


CHANGES: dict[str, tuple[Callable[[Path], Any], bool]] = {
    "read": (Path.read_bytes, True),
    "write": (_write, False),
    "append": (_append, True),
    "truncating open": (_truncated, False),
    "truncate": (lambda path: os.truncate(path, 1), False),
    "chmod": (lambda path: path.chmod(0o600), False),
    "chown": (lambda path: os.chown(path, 1, 1), False),
    "utime": (_utime, False),
    "touch": (lambda path: path.touch(), True),
    "setxattr": (lambda path: os.setxattr(path, "user.x", b"y"), False),
    "link": (_linked, False),
    "rename": (_renamed, False),
    "replace": (_replaced, False),
    "unlink": (os.unlink, False),
}
"""What is done to a file, and whether an append-only one allows it; an immutable one may be read."""


@pytest.mark.parametrize("flag", [IMMUTABLE, APPEND])
@pytest.mark.parametrize("change", CHANGES)
def test_what_a_protected_file_refuses(
    slot: Slot, subject: Subject, flag: int, change: str
) -> None:
    call, appends = CHANGES[change]
    path = slot / "file"
    set_flags(path, flag)
    try:
        allowed = change == "read" or (appends and flag == APPEND)
        assert errno_of(call, path) == ("" if allowed else "EPERM")
    finally:
        set_flags(path, 0)
    grown = b"more" if change == "append" and flag == APPEND else b""
    assert path.read_bytes() == CONTENT + grown
    assert (slot / "other").exists()


@pytest.mark.parametrize("flag", [IMMUTABLE, APPEND])
def test_what_a_protected_directory_refuses(slot: Slot, subject: Subject, flag: int) -> None:
    home = slot / "full"
    makes = "EPERM" if flag == IMMUTABLE else ""
    set_flags(home, flag)
    try:
        assert errno_of((home / "new").touch) == makes
        assert errno_of((home / "directory").mkdir) == makes
        assert errno_of(os.symlink, "x", home / "symlink") == makes
        assert errno_of(os.rename, slot / "other", home / "moved") == makes
        assert errno_of(os.link, slot / "file", home / "link") == makes
        assert errno_of(os.unlink, home / "inner") == "EPERM"
        assert errno_of(os.rename, home / "inner", slot / "inner") == "EPERM"
        assert errno_of(home.chmod, 0o700) == "EPERM"
        assert errno_of(os.rmdir, home) == "EPERM"
        assert (home / "inner").read_bytes() == b"inner"
        (home / "inner").write_bytes(b"changed")
    finally:
        set_flags(home, 0)
    os.unlink(home / "inner")


def test_an_open_descriptor_writes_on_and_punches_no_holes(slot: Slot, subject: Subject) -> None:
    fd = os.open(slot / "file", os.O_RDWR)
    set_flags(slot / "file", APPEND)
    try:
        assert os.pwrite(fd, b"x", 0) == 1
        assert errno_of(os.ftruncate, fd, 1) == "EPERM"
        with pytest.raises(PermissionError):
            _fallocate(fd, 1 | 2)
    finally:
        set_flags(slot / "file", 0)
        os.close(fd)


def _fallocate(fd: int, mode: int) -> None:
    offsets = ctypes.c_int64(0), ctypes.c_int64(4096)
    if _libc.fallocate(fd, mode, *offsets):
        raise OSError(ctypes.get_errno(), "fallocate")


def test_a_number_used_again_is_not_protected(slot: Slot, subject: Subject) -> None:
    for round in range(20):
        path = slot / "made"
        path.touch()
        set_flags(path, IMMUTABLE)
        set_flags(path, 0)
        path.unlink()
        (slot / f"again{round}").write_bytes(b"x")
        (slot / f"again{round}").write_bytes(b"y")


@pytest.mark.parametrize("flag", [IMMUTABLE, APPEND, NODUMP])
def test_who_may_set_flags(slot: Slot, subject: Subject, flag: int) -> None:
    os.chown(slot / "other", ALICE, ALICE)
    assert user_errno(ALICE, set_flags, slot / "other", flag) == ("" if flag == NODUMP else "EPERM")
    assert user_errno(ALICE, set_flags, slot / "file", flag) == "EPERM"


@pytest.mark.parametrize("name", ["fifo", "null", "socket"])
def test_only_files_and_directories_have_flags(slot: Slot, subject: Subject, name: str) -> None:
    try:
        fd = os.open(slot / name, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return
    with pytest.raises(OSError, match="Inappropriate"):
        fcntl.ioctl(fd, GETFLAGS, bytes(4))
    os.close(fd)
