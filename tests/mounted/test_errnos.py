"""Which errno each system call answers the impossible with, and that nothing changes then."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.mounted.slots import KINDS, Slot
from tests.mounted.subject import SUBJECTS, Subject
from tests.mounted.users import errno_of

_libc = ctypes.CDLL(None, use_errno=True)

TOO_LONG = "n" * 256


def bind(path: str | os.PathLike[str]) -> None:
    """Binds a socket, in the directory first since an address holds 108 bytes."""
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(os.path.dirname(path))
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(os.path.basename(path))
    finally:
        os.fchdir(here)
        os.close(here)


def create(path: str | os.PathLike[str]) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644))


def read_open(path: str | os.PathLike[str]) -> None:
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))


def mknod(path: str | os.PathLike[str]) -> None:
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))


def mkfile(path: str | os.PathLike[str]) -> None:
    os.mknod(path, stat.S_IFREG | 0o600)


def symlink(path: str | os.PathLike[str]) -> None:
    os.symlink("target", path)


def chmod(path: str | os.PathLike[str]) -> None:
    os.chmod(path, 0o700)


def chown(path: str | os.PathLike[str]) -> None:
    os.chown(path, 1, 1)


def lchown(path: str | os.PathLike[str]) -> None:
    os.chown(path, 1, 1, follow_symlinks=False)


def truncate(path: str | os.PathLike[str]) -> None:
    os.truncate(path, 10)


def utimens(path: str | os.PathLike[str]) -> None:
    os.utime(path, ns=(1, 1))


def getxattr(path: str | os.PathLike[str]) -> None:
    os.getxattr(path, "user.none")


def rename_from(path: str | os.PathLike[str]) -> None:
    os.rename(path, os.fspath(path)[:200] + ".elsewhere")


def link_from(path: str | os.PathLike[str]) -> None:
    os.link(path, os.fspath(path)[:200] + ".elsewhere")


MAKERS: list[Callable[[str], Any]] = [create, os.mkdir, os.mkfifo, mknod, mkfile, symlink, bind]
USERS: list[Callable[[str], Any]] = [
    read_open, os.stat, os.unlink, os.rmdir, os.readlink, chmod, chown, lchown, truncate,
    utimens, getxattr, rename_from, link_from, os.listdir, os.statvfs,
]  # fmt: skip
ALL = MAKERS + USERS
FOLLOWERS: list[Callable[[str], Any]] = [
    read_open,
    os.stat,
    chmod,
    chown,
    truncate,
    utimens,
    getxattr,
    os.listdir,
    os.statvfs,
]


def into(path: str) -> list[Callable[[str], Any]]:
    """Calls that make their argument the new name of something at `path`."""

    def rename(new: str) -> None:
        os.rename(path, new)

    def link(new: str) -> None:
        os.link(path, new)

    return [rename, link]


def snapshot(slot: Slot) -> dict[str, os.stat_result]:
    found = {}
    for name in sorted(os.listdir(slot.dir)):
        seen = os.lstat(slot / name)
        found[name] = (seen.st_ino, seen.st_mode, seen.st_nlink, seen.st_size, seen.st_mtime_ns)
    return found  # type: ignore[return-value]


def test_a_component_of_256_bytes_is_too_long_and_of_255_is_not(slot: Slot) -> None:
    before = snapshot(slot)
    for call in ALL:
        if call is not bind:
            assert errno_of(call, str(slot / TOO_LONG)) == "ENAMETOOLONG", call
            assert errno_of(call, str(slot / TOO_LONG / "x")) == "ENAMETOOLONG", call
    for call in into(str(slot / "file")):
        assert errno_of(call, str(slot / TOO_LONG)) == "ENAMETOOLONG", call
    assert snapshot(slot) == before
    for number, call in enumerate(MAKERS):
        if call is not bind:
            call(str(slot / f"{number:0255d}"))
    assert len(os.listdir(slot.dir)) == len(before) + len(MAKERS) - 1


def test_a_path_of_path_max_is_too_long(slot: Slot) -> None:
    deep = str(slot.dir) + "/." * (4096 // 2)
    for call in ALL:
        if call is not bind:
            assert errno_of(call, deep + "/x") == "ENAMETOOLONG", call


def test_what_is_missing_is_enoent_also_on_the_way(slot: Slot) -> None:
    for call in USERS:
        assert errno_of(call, str(slot / "missing")) == "ENOENT", call
    for call in ALL:
        assert errno_of(call, str(slot / "missing" / "x")) == "ENOENT", call
    for call in into(str(slot / "missing")):
        assert errno_of(call, str(slot / "new")) == "ENOENT", call
    for call in into(str(slot / "file")):
        assert errno_of(call, str(slot / "missing" / "new")) == "ENOENT", call


@pytest.mark.parametrize("kind", ["file", "fifo", "null", "block", "socket"])
def test_a_file_on_the_way_is_enotdir(slot: Slot, kind: str) -> None:
    for call in ALL:
        assert errno_of(call, str(slot / kind / "x")) == "ENOTDIR", call
    for call in into(str(slot / "other")):
        assert errno_of(call, str(slot / kind / "x")) == "ENOTDIR", call


def test_a_link_to_itself_is_eloop(slot: Slot) -> None:
    os.symlink("loop", slot / "loop")
    os.symlink("pong", slot / "ping")
    os.symlink("ping", slot / "pong")
    for name in ("loop", "ping"):
        for call in ALL:
            assert errno_of(call, str(slot / name / "x")) == "ELOOP", call
        for follower in FOLLOWERS:
            assert errno_of(follower, str(slot / name)) == "ELOOP", follower
    assert errno_of(os.open, slot / "symlink", os.O_RDONLY | os.O_NOFOLLOW) == "ELOOP"


@pytest.mark.parametrize("kind", KINDS)
def test_making_what_is_there_is_eexist(slot: Slot, kind: str) -> None:
    before = snapshot(slot)
    for call in MAKERS:
        expected = "EADDRINUSE" if call is bind else "EEXIST"
        assert errno_of(call, str(slot / kind)) == expected, call
    assert errno_of(os.link, slot / "file", slot / kind) == "EEXIST"
    assert snapshot(slot) == before


def test_making_dot_and_dotdot_is_eexist_and_removing_them_fails(slot: Slot) -> None:
    for name in (".", "..", "full/.", "full/.."):
        assert errno_of(os.mkdir, f"{slot.dir}/{name}") == "EEXIST"
    assert errno_of(os.rmdir, f"{slot.dir}/empty/.") == "EINVAL"
    assert errno_of(os.rmdir, f"{slot.dir}/empty/..") == "ENOTEMPTY"
    assert errno_of(os.unlink, f"{slot.dir}/empty/.") in ("EISDIR", "EINVAL", "EPERM")
    assert errno_of(os.rename, f"{slot.dir}/empty/.", slot / "x") in ("EINVAL", "EBUSY")


@pytest.mark.parametrize("kind", KINDS)
def test_directories_and_others_are_removed_by_their_own_calls(slot: Slot, kind: str) -> None:
    if kind in ("full", "empty"):
        assert errno_of(os.unlink, slot / kind) == "EISDIR"
        assert errno_of(os.rmdir, slot / kind) == ("ENOTEMPTY" if kind == "full" else "")
    else:
        assert errno_of(os.rmdir, slot / kind) == "ENOTDIR"
        assert errno_of(os.unlink, slot / kind) == ""
        assert errno_of(os.lstat, slot / kind) == "ENOENT"
        assert kind not in os.listdir(slot.dir)


def test_a_directory_cannot_be_written_or_linked(slot: Slot) -> None:
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_CREAT | os.O_RDWR):
        assert errno_of(os.open, slot / "full", flags) == "EISDIR"
    assert errno_of(os.open, slot / "file", os.O_RDONLY | os.O_DIRECTORY) == "ENOTDIR"
    assert errno_of(os.truncate, slot / "full", 0) == "EISDIR"
    assert errno_of(os.link, slot / "full", slot / "again") == "EPERM"
    fd = os.open(slot / "full", os.O_RDONLY)
    try:
        assert errno_of(os.read, fd, 1) == "EISDIR"
    finally:
        os.close(fd)


def test_special_files_are_opened_as_what_they_are(slot: Slot) -> None:
    assert errno_of(os.open, slot / "socket", os.O_RDONLY) == "ENXIO"
    assert errno_of(os.open, slot / "fifo", os.O_WRONLY | os.O_NONBLOCK) == "ENXIO"
    assert errno_of(os.truncate, slot / "fifo", 0) == "EINVAL"
    assert errno_of(os.readlink, slot / "file") == "EINVAL"
    assert errno_of(os.readlink, slot / "empty") == "EINVAL"


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
def test_rename_over_each_kind(slot: Slot, source: str, target: str) -> None:
    before = snapshot(slot)
    is_directory = source in ("full", "empty")
    if source == target:
        expected = ""
    elif is_directory:
        expected = {"full": "ENOTEMPTY", "empty": ""}.get(target, "ENOTDIR")
    else:
        expected = "EISDIR" if target in ("full", "empty") else ""
    assert errno_of(os.rename, slot / source, slot / target) == expected
    if expected or source == target:
        assert snapshot(slot) == before
        return
    after = snapshot(slot)
    assert source not in after
    assert after[target][0] == before[source][0]
    assert after[target][1] == before[source][1]
    os.symlink("x", slot / source)


def test_a_directory_does_not_move_below_itself(slot: Slot) -> None:
    (slot / "full" / "deep").mkdir()
    assert errno_of(os.rename, slot / "full", slot / "full" / "x") == "EINVAL"
    assert errno_of(os.rename, slot / "full", slot / "full" / "deep" / "x") == "EINVAL"
    assert errno_of(os.rename, slot / "full" / "deep", slot / "full") == "ENOTEMPTY"


def test_other_filesystems_are_exdev(slot: Slot, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    assert errno_of(os.link, tmp_path / "out", slot / "new") == "EXDEV"
    assert errno_of(os.rename, tmp_path / "out", slot / "new") == "EXDEV"
    assert errno_of(os.rename, slot / "file", tmp_path / "new") == "EXDEV"


def test_sizes_that_make_no_sense(slot: Slot) -> None:
    assert errno_of(os.truncate, slot / "file", -1) == "EINVAL"
    fd = os.open(slot / "file", os.O_RDONLY)
    try:
        assert errno_of(os.ftruncate, fd, 0) == "EINVAL"
        assert errno_of(os.write, fd, b"x") == "EBADF"
        assert errno_of(os.posix_fallocate, fd, 0, 10) == "EBADF"
    finally:
        os.close(fd)
    fd = os.open(slot / "file", os.O_WRONLY)
    try:
        assert errno_of(os.read, fd, 1) == "EBADF"
        assert errno_of(os.posix_fallocate, fd, -1, 10) == "EINVAL"
        assert errno_of(os.posix_fallocate, fd, 0, 0) == "EINVAL"
    finally:
        os.close(fd)


def test_bad_flags_and_times_are_einval(slot: Slot) -> None:
    renameat2 = _libc.renameat2
    for flags in (8, 1 | 2, 2 | 4):
        args = (-100, os.fsencode(slot / "file"), -100, os.fsencode(slot / "other"), flags)
        assert renameat2(*args) == -1
        assert ctypes.get_errno() == errno.EINVAL
    assert errno_of(os.mknod, slot / "odd", stat.S_IFDIR | 0o755) == "EPERM"
    assert errno_of(os.mknod, slot / "odd", stat.S_IFLNK | 0o755) == "EINVAL"


def test_a_running_program_is_etxtbsy(slot: Slot) -> None:
    program = slot / "program"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    with subprocess.Popen([program, "60"]) as running:
        assert errno_of(os.open, program, os.O_WRONLY) == "ETXTBSY"
        assert errno_of(os.open, program, os.O_RDONLY) == ""
        assert errno_of(os.truncate, program, 0) == "ETXTBSY"
        running.kill()
    assert errno_of(os.open, program, os.O_WRONLY) == ""
    writer = os.open(program, os.O_WRONLY)
    try:
        assert errno_of(subprocess.run, [program, "0"], check=False) == "ETXTBSY"
    finally:
        os.close(writer)


@pytest.mark.parametrize("name", list(SUBJECTS))
def test_a_read_only_mount_refuses_every_change(name: str, mounted: Callable[..., Subject]) -> None:
    def prepare(subject: Subject) -> None:
        from tests.mounted.slots import fill

        (subject.lower / "s").mkdir()
        fill(subject.lower / "s")

    subject = mounted(SUBJECTS[name], prepare, read_only=True)
    home = subject.mountpoint / "s"
    for call in [*MAKERS, *into(str(home / "file"))]:
        assert errno_of(call, str(home / "new")) == "EROFS", call
    for call in (chmod, chown, truncate, utimens, os.unlink, rename_from):
        assert errno_of(call, str(home / "file")) == "EROFS", call
    assert errno_of(os.rmdir, home / "empty") == "EROFS"
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        assert errno_of(os.open, home / "file", flags) == "EROFS"
    assert errno_of(os.setxattr, home / "file", "user.a", b"1") == "EROFS"
    assert errno_of(os.mkdir, home / "empty") == "EEXIST"
    assert errno_of(os.open, home / "missing", os.O_RDONLY) == "ENOENT"
    # A device, a FIFO and a socket are written elsewhere.
    os.close(os.open(home / "null", os.O_WRONLY))
    assert os.access(home / "file", os.R_OK)
    assert not os.access(home / "file", os.W_OK)
