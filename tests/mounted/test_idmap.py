"""Idmapped mounts (mount_setattr(2)) of a union: the same tree under other owners' names."""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted.slots import CONTENT, Slot
from tests.mounted.subject import SUBJECTS, Subject
from tests.mounted.users import ALICE, BOB, as_user, errno_of, user_errno

pytestmark = pytest.mark.parametrize(
    "subject", [name for name in SUBJECTS if name != "kernel"], indirect=True, scope="module"
)
"""The kernel allows none of its own overlays; what is right is what it says of a local filesystem."""

SHIFT = ALICE
"""What belongs to 0 in the union belongs to this user in the idmapped mount, 1 to the next, and so on."""

_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH, _AT_EMPTY_PATH = 1, 4, 0x1000
_MOUNT_ATTR_IDMAP = 0x100000
_CLONE_NEWUSER = 0x10000000

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _user_namespace() -> int:
    """A descriptor of a namespace in which 0 stands for SHIFT."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _libc.unshare(_CLONE_NEWUSER)
        os.write(writer, b"!")
        signal.pause()
        os._exit(1)
    try:
        os.read(reader, 1)
        for kind in ("uid", "gid"):
            Path(f"/proc/{pid}/{kind}_map").write_text(f"0 {SHIFT} 1000")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)


def mount_idmapped(source: Path, target: Path) -> None:
    namespace = _user_namespace()
    tree = _check(_libc.syscall(_SYS_OPEN_TREE, -100, os.fsencode(source), _OPEN_TREE_CLONE))
    try:
        attributes = struct.pack("QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, namespace)
        _check(
            _libc.syscall(
                _SYS_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, attributes, ctypes.c_size_t(32)
            )
        )
        place = os.fsencode(target)
        _check(_libc.syscall(_SYS_MOVE_MOUNT, tree, b"", -100, place, _MOVE_MOUNT_F_EMPTY_PATH))
    finally:
        os.close(tree)
        os.close(namespace)


@pytest.fixture
def mapped(slot: Slot, subject: Subject, tmp_path: Path) -> Iterator[Path]:
    """The slot, idmapped; where that cannot be had, the refusal is asserted and the directory is empty."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.geteuid() and len(directory.parts) > 2:
            directory.chmod(0o755)
    target = tmp_path / "idmapped"
    target.mkdir()
    if "idmap" in subject.limits:
        assert errno_of(mount_idmapped, subject.mountpoint, target) == "EINVAL"
        yield target
        return
    mount_idmapped(subject.mountpoint, target)
    yield target / slot.dir.name
    _libc.umount2(os.fsencode(target), 2)


def test_owners_are_mapped_both_ways(slot: Slot, subject: Subject, mapped: Path) -> None:
    if "idmap" in subject.limits:
        assert list(mapped.iterdir()) == []
        return
    assert os.stat(mapped / "file").st_uid == ALICE
    as_user(ALICE, os.mkdir, mapped / "made")
    as_user(ALICE, (mapped / "new").write_bytes, b"new")
    as_user(ALICE, os.symlink, "x", mapped / "symlink2")
    as_user(ALICE, os.mknod, mapped / "fifo2", stat.S_IFIFO | 0o600)
    for name in ("made", "new", "symlink2", "fifo2"):
        assert os.lstat(slot / name).st_uid == os.lstat(slot / name).st_gid == 0
        real = subject.upper / slot.dir.name / name
        assert os.lstat(real).st_uid == 0
        assert os.lstat(mapped / name).st_uid == ALICE
    os.chown(mapped / "other", BOB, BOB)
    assert os.stat(slot / "other").st_uid == BOB - SHIFT
    assert os.stat(mapped / "other").st_uid == BOB
    assert errno_of(os.chown, mapped / "other", 5, 5) == "EOVERFLOW"


def test_the_mapped_owner_may_what_an_owner_may(slot: Slot, subject: Subject, mapped: Path) -> None:
    if "idmap" in subject.limits:
        return
    as_user(ALICE, os.chmod, mapped / "file", 0o4711)
    assert stat.S_IMODE(os.stat(slot / "file").st_mode) == 0o4711
    assert user_errno(BOB, os.chmod, mapped / "file", 0o777) == "EPERM"
    assert user_errno(BOB, os.unlink, mapped / "file") == "EACCES"
    as_user(ALICE, os.setxattr, mapped / "file", "user.x", b"y")
    as_user(ALICE, os.rename, mapped / "file", mapped / "renamed")
    as_user(ALICE, os.link, mapped / "renamed", mapped / "again")
    assert (slot / "again").read_bytes() == CONTENT
    as_user(ALICE, os.unlink, mapped / "renamed")


def test_setuid_goes_when_somebody_else_writes(slot: Slot, subject: Subject, mapped: Path) -> None:
    if "idmap" in subject.limits:
        return
    (slot / "file").chmod(0o6777)

    def write() -> None:
        fd = os.open(mapped / "file", os.O_WRONLY)
        os.write(fd, b"x")
        os.close(fd)

    as_user(BOB, write)
    assert stat.S_IMODE(os.stat(slot / "file").st_mode) == 0o777
    (slot / "file").chmod(0o6777)
    as_user(BOB, write)
    assert stat.S_IMODE(os.stat(slot / "file").st_mode) == 0o777
    (slot / "file").chmod(0o6755)
    write()
    assert stat.S_IMODE(os.stat(slot / "file").st_mode) == 0o6755, "root keeps them"
