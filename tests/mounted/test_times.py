"""Which times move with which call, and how they are set."""

from __future__ import annotations

import mmap
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mounted.slots import KINDS, STAMP_NS, Slot
from tests.mounted.subject import Subject
from tests.mounted.users import ALICE, errno_of, user_errno


@contextmanager
def moves(path: Path, times: str, also: str = "") -> Iterator[None]:
    """Within, exactly the `times` (letters of a, m, c) of `path` move, and to now; `also` may."""
    before = os.lstat(path)
    # Clocks of filesystems tick every few milliseconds.
    time.sleep(0.015)
    began = time.time_ns() - 20_000_000
    yield
    after = os.lstat(path)
    moved = ""
    for letter in "amc":
        field = f"st_{letter}time_ns"
        if getattr(after, field) != getattr(before, field):
            moved += letter
            assert began <= getattr(after, field) <= time.time_ns() + 10**9, f"{path} {letter}time"
    assert moved in (times, also), f"{path}: {moved!r} moved"


def test_times_of_the_layers_show_with_nanoseconds(slot: Slot) -> None:
    for kind in KINDS:
        found = os.lstat(slot / kind)
        assert found.st_mtime_ns == STAMP_NS, kind
        assert found.st_atime_ns == STAMP_NS, kind


@pytest.mark.parametrize("kind", KINDS)
def test_mode_owner_and_links_move_ctime_alone(slot: Slot, kind: str) -> None:
    path = slot / kind
    if kind != "symlink":
        # A copy-up makes a name in the upper's directory, whose ctime nobody can put back.
        with moves(path, "c"), moves(slot.dir, "", also="c"):
            path.chmod(0o700)
    with moves(path, "c"):
        os.chown(path, 5, 6, follow_symlinks=False)
    if kind not in ("full", "empty"):
        with moves(path, "c"), moves(slot.dir, "mc"):
            os.link(path, slot / "more", follow_symlinks=False)
        with moves(path, "c"), moves(slot.dir, "mc"):
            os.unlink(slot / "more")
    assert os.lstat(path).st_mtime_ns == STAMP_NS


@pytest.mark.parametrize("kind", KINDS)
def test_rename_moves_the_directories_times(slot: Slot, kind: str) -> None:
    (slot / "target").mkdir()
    with moves(slot.dir, "mc"), moves(slot / "target", "mc"):
        os.rename(slot / kind, slot / "target" / kind)
    found = os.lstat(slot / "target" / kind)
    assert found.st_mtime_ns == STAMP_NS


def test_xattrs_move_ctime(slot: Slot) -> None:
    for name in ("file", "full"):
        with moves(slot / name, "c"):
            os.setxattr(slot / name, "user.x", b"1")
        with moves(slot / name, "c"):
            os.removexattr(slot / name, "user.x")


def test_data_moves_mtime_and_ctime(slot: Slot) -> None:
    path = slot / "file"
    with moves(path, "mc"), moves(slot.dir, "", also="c"):
        os.truncate(path, 100)
    with moves(path, "mc"):
        os.truncate(path, 100_000)
    fd = os.open(path, os.O_RDWR)
    with moves(path, "mc"):
        os.pwrite(fd, b"x", 0)
    with moves(path, "mc"):
        os.ftruncate(fd, 50)
    with moves(path, ""):
        os.write(fd, b"")
    os.close(fd)
    with moves(path, "mc"):
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    with moves(path, ""):
        os.close(os.open(path, os.O_WRONLY))


def test_a_store_through_a_shared_mapping_moves_mtime_and_ctime(slot: Slot) -> None:
    path = slot / "file"
    fd = os.open(path, os.O_RDWR)
    # The page may have to be read first, which is an access.
    with mmap.mmap(fd, 4096) as mapping, moves(path, "mc", also="amc"):
        mapping[10:15] = b"store"
        mapping.flush()
    os.close(fd)
    assert path.read_bytes()[10:15] == b"store"


MAKERS: list[Callable[[Path], object]] = [
    lambda path: os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)),
    os.mkdir,
    os.mkfifo,
    lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
    lambda path: os.symlink("x", path),
    lambda path: os.link(path.with_name("file"), path),
]


@pytest.mark.parametrize("make", MAKERS)
def test_making_and_removing_moves_the_parents_times(
    slot: Slot, make: Callable[[Path], object]
) -> None:
    path = slot / "new"
    with moves(slot.dir, "mc"):
        make(path)
    now = time.time_ns()
    if os.lstat(path).st_nlink == 1 or stat.S_ISDIR(os.lstat(path).st_mode):
        for field in ("st_atime_ns", "st_mtime_ns", "st_ctime_ns"):
            assert abs(getattr(os.lstat(path), field) - now) < 2 * 10**9
    with moves(slot.dir, "mc"):
        os.rmdir(path) if path.is_dir() and not path.is_symlink() else os.unlink(path)


def test_failed_calls_move_nothing(slot: Slot) -> None:
    with moves(slot.dir, ""), moves(slot / "file", ""), moves(slot / "full", ""):
        for call in (os.mkdir, os.rmdir, os.mkfifo):
            assert errno_of(call, slot / "file")
        assert errno_of(os.rename, slot / "file", slot / "full")
        assert errno_of(os.rmdir, slot / "full")
        assert user_errno(ALICE, os.truncate, slot / "file", 1)


@pytest.mark.parametrize("kind", KINDS)
def test_utimensat_sets_what_it_is_told(slot: Slot, kind: str) -> None:
    path = slot / kind
    for times in ((1, 2), (0, 0), (10**9 - 1, 10**18 + 7), (-(10**9), -1), ((1 << 33) * 10**9, 5)):
        os.utime(path, ns=times, follow_symlinks=False)
        found = os.lstat(path)
        assert (found.st_atime_ns, found.st_mtime_ns) == times
    with moves(path, "amc"):
        os.utime(path, follow_symlinks=False)


def test_futimens_and_utimes_through_a_link(slot: Slot) -> None:
    fd = os.open(slot / "file", os.O_RDONLY)
    os.utime(fd, ns=(7, 8))
    os.close(fd)
    assert os.stat(slot / "file").st_mtime_ns == 8
    os.utime(slot / "symlink", ns=(9, 10))
    assert os.stat(slot / "file").st_mtime_ns == 10
    assert os.lstat(slot / "symlink").st_mtime_ns == STAMP_NS


def test_reading_a_lower_file_never_writes_to_the_lower_layer(slot: Slot, subject: Subject) -> None:
    if slot.place == "upper":
        path = slot / "file"
        os.utime(path, ns=(1, STAMP_NS))
        path.read_bytes()
        # By the upper's own rule: relatime, so an access time before the modification moves.
        assert os.stat(path).st_atime_ns > STAMP_NS
        return
    below = subject.lower / slot.dir.name
    (slot / "file").read_bytes()
    os.listdir(slot / "full")
    os.readlink(slot / "symlink")
    for name in ("file", "full", "symlink"):
        assert os.lstat(below / name).st_atime_ns == STAMP_NS


def test_copy_up_keeps_times(slot: Slot) -> None:
    for kind in KINDS:
        os.chown(slot / kind, 3, 3, follow_symlinks=False)
        found = os.lstat(slot / kind)
        assert (found.st_atime_ns, found.st_mtime_ns) == (STAMP_NS, STAMP_NS), kind
