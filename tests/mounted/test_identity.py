"""One inode is one inode: numbers, links and kinds, through copy-up, forgetting and remounts."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from tests.mounted.slots import CONTENT, KINDS, SPECIALS, Slot
from tests.mounted.subject import Subject


def numbers(directory: Path) -> dict[str, tuple[int, int]]:
    """(st_ino, d_ino) of everything in a directory, by a listing with `.` and `..` left out."""
    with os.scandir(directory) as entries:
        return {
            entry.name: (entry.stat(follow_symlinks=False).st_ino, entry.inode())
            for entry in entries
        }


def test_a_listing_names_the_inode_that_stat_shows(slot: Slot) -> None:
    for name, (st_ino, d_ino) in numbers(slot.dir).items():
        assert st_ino == d_ino, name
        assert st_ino == os.lstat(slot / name).st_ino
    found = numbers(slot.dir)
    assert found["hard1"] == found["hard2"]
    assert len({ino for ino, _ in found.values()}) == len(found) - 1


@pytest.mark.parametrize("kind", KINDS)
def test_copy_up_keeps_the_inode_number(slot: Slot, subject: Subject, kind: str) -> None:
    before = os.lstat(slot / kind)
    os.chown(slot / kind, 1, 2, follow_symlinks=False)
    after = os.lstat(slot / kind)
    assert (after.st_ino, after.st_dev) == (before.st_ino, before.st_dev)
    assert numbers(slot.dir)[kind] == (before.st_ino, before.st_ino)
    os.rename(slot / kind, slot / "moved")
    assert os.lstat(slot / "moved").st_ino == before.st_ino
    subject.forget()
    assert os.lstat(slot / "moved").st_ino == before.st_ino
    assert numbers(slot.dir)["moved"] == (before.st_ino, before.st_ino)


def test_all_is_found_again_after_forgetting(slot: Slot, subject: Subject) -> None:
    os.chown(slot / "file", 1, 2)
    (slot / "new").write_bytes(b"new")
    os.link(slot / "hard1", slot / "hard3")
    before = {name: os.lstat(slot / name) for name in os.listdir(slot.dir)}
    subject.forget()
    for name, then in before.items():
        now = os.lstat(slot / name)
        assert now == then, name


def test_special_files_work_and_are_what_they_were(slot: Slot, subject: Subject) -> None:
    for touched in (False, True):
        if touched:
            for kind in (*SPECIALS, "socket"):
                (slot / kind).chmod(0o666)
        subject.forget()
        with open(slot / "null", "r+b", buffering=0) as null:
            assert null.write(b"gone") == 4
            assert null.read() == b""
        for kind, (mode, rdev) in SPECIALS.items():
            found = os.lstat(slot / kind)
            assert stat.S_IFMT(found.st_mode) == stat.S_IFMT(mode)
            assert found.st_rdev == rdev
        reader = os.open(slot / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        writer = os.open(slot / "fifo", os.O_WRONLY)
        os.write(writer, b"through")
        assert os.read(reader, 10) == b"through"
        os.close(reader)
        os.close(writer)
        assert stat.S_ISSOCK(os.lstat(slot / "socket").st_mode)


def test_a_bound_socket_is_found_by_those_who_connect(slot: Slot, subject: Subject) -> None:
    here = os.open(".", os.O_RDONLY)
    os.chdir(slot.dir)
    try:
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind("bound")
            server.listen()
            subject.forget()
            client.connect("bound")
            connection, _ = server.accept()
            with connection:
                client.sendall(b"hello")
                assert connection.recv(10) == b"hello"
            os.rename("bound", "elsewhere")
            with socket.socket(socket.AF_UNIX) as late:
                late.connect("elsewhere")
    finally:
        os.fchdir(here)
        os.close(here)


def test_hard_links_stay_links_across_copy_up(slot: Slot) -> None:
    before = os.stat(slot / "hard1")
    assert before.st_nlink == 2
    with open(slot / "hard1", "ab") as file:
        file.write(b" and more")
    for name in ("hard1", "hard2"):
        assert (slot / name).read_bytes() == b"linked and more"
        found = os.stat(slot / name)
        assert (found.st_ino, found.st_nlink) == (before.st_ino, 2)
    os.link(slot / "hard2", slot / "hard3")
    assert os.stat(slot / "hard1").st_nlink == 3
    (slot / "hard2").chmod(0o611)
    assert stat.S_IMODE(os.stat(slot / "hard3").st_mode) == 0o611
    os.unlink(slot / "hard1")
    assert os.stat(slot / "hard2").st_nlink == 2
    os.unlink(slot / "hard2")
    assert os.stat(slot / "hard3").st_nlink == 1
    assert (slot / "hard3").read_bytes() == b"linked and more"


def test_a_lower_link_is_removed_without_touching_its_other_name(slot: Slot) -> None:
    ino = os.stat(slot / "hard1").st_ino
    os.unlink(slot / "hard1")
    found = os.stat(slot / "hard2")
    assert (found.st_ino, found.st_nlink) == (ino, 1)
    assert (slot / "hard2").read_bytes() == b"linked"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("full", "empty")])
def test_every_kind_but_directories_can_be_linked(slot: Slot, kind: str) -> None:
    before = os.lstat(slot / kind)
    os.link(slot / kind, slot / "again", follow_symlinks=False)
    after = os.lstat(slot / "again")
    assert (after.st_ino, after.st_mode, after.st_rdev) == (
        before.st_ino, before.st_mode, before.st_rdev,
    )  # fmt: skip
    assert os.lstat(slot / kind).st_nlink == 2
    os.unlink(slot / kind)
    assert os.lstat(slot / "again").st_nlink == 1


def test_a_symlink_is_followed_by_link_only_when_asked(slot: Slot) -> None:
    home = os.open(slot.dir, os.O_RDONLY)
    # os.link asks for AT_SYMLINK_FOLLOW only when it is given directories.
    os.link("symlink", "followed", src_dir_fd=home, dst_dir_fd=home, follow_symlinks=True)
    os.close(home)
    assert os.lstat(slot / "followed").st_ino == os.lstat(slot / "file").st_ino


def test_directories_count_their_subdirectories(slot: Slot) -> None:
    """Kernel overlayfs shows 1 for a merge directory, which find(1) takes for "not counted"."""
    home = slot / "empty"

    def links(directories: int) -> tuple[int, ...]:
        return (directories + 2,) if slot.place == "upper" else (directories + 2, 1)

    assert os.stat(home).st_nlink in links(0)
    (home / "a").mkdir()
    (home / "b").mkdir()
    assert os.stat(home).st_nlink in links(2)
    os.rename(home / "a", slot / "full" / "a")
    assert os.stat(home).st_nlink in links(1)
    os.rmdir(home / "b")
    assert os.stat(home).st_nlink in links(0)


def test_a_whole_tree_is_the_same_after_a_remount(slot: Slot, subject: Subject) -> None:
    os.chown(slot / "file", 1, 2)
    os.link(slot / "hard1", slot / "hard3")
    os.rename(slot / "full", slot / "moved")
    os.unlink(slot / "other")
    (slot / "new").mkdir()
    (slot / "new" / "file").write_bytes(CONTENT)
    os.setxattr(slot / "file", "user.a", b"b")

    def tree() -> dict[str, os.stat_result]:
        return {str(path): os.lstat(path) for path in sorted(slot.dir.rglob("*"))}

    def without_device(found: dict[str, os.stat_result]) -> object:
        fields = ["st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size", "st_rdev"]
        fields += ["st_atime_ns", "st_mtime_ns", "st_ctime_ns"]
        return {
            name: [getattr(status, field) for field in fields] for name, status in found.items()
        }

    before = without_device(tree())
    subject.remount()
    assert without_device(tree()) == before
    assert os.getxattr(slot / "file", "user.a") == b"b"
