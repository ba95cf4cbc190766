"""rename(2) and renameat2(2): flags, directories of the lower layer, names that come back."""

from __future__ import annotations

import ctypes
import os
import stat
from pathlib import Path

import pytest

from tests.mounted.slots import CONTENT, KINDS, Slot
from tests.mounted.subject import Subject
from tests.mounted.users import errno_of

_libc = ctypes.CDLL(None, use_errno=True)
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4


def renameat2(old: Path, new: Path, flags: int) -> None:
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("kind", KINDS)
def test_noreplace_never_replaces(slot: Slot, kind: str) -> None:
    ino = os.lstat(slot / kind).st_ino
    for target in KINDS:
        assert errno_of(renameat2, slot / kind, slot / target, NOREPLACE) == "EEXIST"
    renameat2(slot / kind, slot / "new", NOREPLACE)
    assert os.lstat(slot / "new").st_ino == ino
    assert errno_of(os.lstat, slot / kind) == "ENOENT"


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_exchange_swaps_any_two(slot: Slot, subject: Subject, first: str, second: str) -> None:
    one, two = os.lstat(slot / first), os.lstat(slot / second)
    renameat2(slot / first, slot / second, EXCHANGE)
    for _ in range(2):
        if first != second:
            assert os.lstat(slot / first).st_ino == two.st_ino
            assert os.lstat(slot / second).st_ino == one.st_ino
            assert stat.S_IFMT(os.lstat(slot / first).st_mode) == stat.S_IFMT(two.st_mode)
        subject.forget()
    assert {first, second} <= set(os.listdir(slot.dir))
    if "full" in (first, second) and first != second:
        assert os.listdir(slot / (second if first == "full" else first)) == ["inner"]
    assert errno_of(renameat2, slot / first, slot / "missing", EXCHANGE) == "ENOENT"


@pytest.mark.parametrize("kind", KINDS)
def test_rename_whiteout_leaves_a_whiteout_device(slot: Slot, subject: Subject, kind: str) -> None:
    """For unions within this one; the kernel's overlayfs does not offer it."""
    if "rename_whiteout" in subject.limits:
        assert errno_of(renameat2, slot / kind, slot / "moved", WHITEOUT) == "EINVAL"
        return
    ino = os.lstat(slot / kind).st_ino
    renameat2(slot / kind, slot / "moved", WHITEOUT)
    for _ in range(2):
        assert os.lstat(slot / "moved").st_ino == ino
        left = os.lstat(slot / kind)
        assert stat.S_ISCHR(left.st_mode)
        assert left.st_rdev == 0
        assert kind in os.listdir(slot.dir)
        subject.forget()
    os.unlink(slot / kind)
    assert errno_of(os.lstat, slot / kind) == "ENOENT"


def test_a_whiteout_device_is_a_device_like_any_other(slot: Slot, subject: Subject) -> None:
    def make() -> None:
        os.mknod(slot / "device", stat.S_IFCHR | 0o600, 0)

    if "whiteout_device" in subject.limits:
        assert errno_of(make) == "EPERM"
        return
    make()
    subject.forget()
    assert os.lstat(slot / "device").st_rdev == 0
    assert "device" in os.listdir(slot.dir)
    os.rename(slot / "device", slot / "moved")
    assert stat.S_ISCHR(os.lstat(slot / "moved").st_mode)


@pytest.mark.parametrize("kind", KINDS)
def test_a_removed_name_stays_removed_and_can_be_made_anew(
    slot: Slot, subject: Subject, kind: str
) -> None:
    path = slot / kind
    if kind == "full":
        os.unlink(path / "inner")
    os.rmdir(path) if kind in ("full", "empty") else os.unlink(path)
    subject.forget()
    assert errno_of(os.lstat, path) == "ENOENT"
    assert kind not in os.listdir(slot.dir)
    os.mkdir(path)
    subject.forget()
    assert os.listdir(path) == []
    os.rmdir(path)
    path.write_bytes(b"anew")
    subject.forget()
    assert path.read_bytes() == b"anew"
    os.unlink(path)
    assert errno_of(os.lstat, path) == "ENOENT"
    assert kind not in os.listdir(slot.dir)


def test_a_directory_moves_with_all_that_is_below(slot: Slot, subject: Subject) -> None:
    (slot / "full" / "deep").mkdir()
    (slot / "full" / "deep" / "file").write_bytes(b"deep")
    (slot / "target").mkdir()
    os.rename(slot / "full", slot / "target" / "moved")
    subject.forget()
    assert (slot / "target" / "moved" / "inner").read_bytes() == b"inner"
    assert (slot / "target" / "moved" / "deep" / "file").read_bytes() == b"deep"
    (slot / "full").mkdir()
    assert os.listdir(slot / "full") == []
    os.rename(slot / "target" / "moved", slot / "full")
    os.rename(slot / "full", slot / "again")
    subject.remount()
    assert sorted(os.listdir(slot / "again")) == ["deep", "inner"]
    assert errno_of(os.lstat, slot / "full") == "ENOENT"
    assert os.listdir(slot / "target") == []


def test_a_directory_replaces_one_that_was_emptied(slot: Slot, subject: Subject) -> None:
    os.unlink(slot / "full" / "inner")
    ino = os.lstat(slot / "empty").st_ino
    (slot / "empty" / "kept").write_bytes(b"kept")
    os.rename(slot / "empty", slot / "full")
    subject.forget()
    assert os.listdir(slot / "full") == ["kept"]
    assert os.lstat(slot / "full").st_ino == ino


def test_a_directory_moved_away_and_its_name_taken(slot: Slot, subject: Subject) -> None:
    """The new one is not merged with what the lower layer has under that name."""
    os.rename(slot / "full", slot / "away")
    os.rename(slot / "empty", slot / "full")
    subject.remount()
    assert os.listdir(slot / "full") == []
    assert os.listdir(slot / "away") == ["inner"]
    os.rename(slot / "away" / "inner", slot / "full" / "inner")
    assert (slot / "full" / "inner").read_bytes() == b"inner"
    assert os.listdir(slot / "away") == []


def test_two_names_of_one_file_are_left_as_they_are(slot: Slot) -> None:
    os.rename(slot / "hard1", slot / "hard2")
    assert os.lstat(slot / "hard1").st_ino == os.lstat(slot / "hard2").st_ino
    os.rename(slot / "hard1", slot / "hard3")
    assert os.stat(slot / "hard3").st_nlink == 2
    os.rename(slot / "hard3", slot / "file")
    assert (slot / "file").read_bytes() == b"linked"
    assert os.stat(slot / "hard2").st_nlink == 2


def test_renaming_over_a_link_counts_it_down(slot: Slot) -> None:
    os.rename(slot / "file", slot / "hard1")
    assert os.stat(slot / "hard2").st_nlink == 1
    assert (slot / "hard1").read_bytes() == CONTENT
    assert (slot / "hard2").read_bytes() == b"linked"


def test_the_root_stays(subject: Subject) -> None:
    assert errno_of(os.rmdir, subject.mountpoint) == "EBUSY"
    assert errno_of(os.rename, subject.mountpoint, subject.scratch / "x") == "EBUSY"
    assert os.lstat(subject.mountpoint).st_ino == os.lstat(f"{subject.mountpoint}/.").st_ino
