"""setuid, setgid and capabilities go when somebody else's hand touches the file."""

from __future__ import annotations

import mmap
import os
import stat
import struct
import subprocess
from collections.abc import Callable

import pytest

from tests.mounted.slots import Slot
from tests.mounted.users import ALICE, as_user, errno_of

CAPABILITY = "security.capability"
# VFS_CAP_REVISION_2 with cap_net_raw, permitted and effective (linux/capability.h).
NET_RAW = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


def mode(path: os.PathLike[str]) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def write(path: os.PathLike[str]) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, b"x")
    os.close(fd)


def append(path: os.PathLike[str]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"x")
    os.close(fd)


def truncate(path: os.PathLike[str]) -> None:
    os.truncate(path, 3)


def ftruncate(path: os.PathLike[str]) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.ftruncate(fd, 3)
    os.close(fd)


def open_truncated(path: os.PathLike[str]) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


CHANGES = [write, append, truncate, ftruncate, open_truncated]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("before", "after"),
    [(0o6777, 0o777), (0o4766, 0o766), (0o2777, 0o777), (0o2766, 0o766), (0o1777, 0o1777)],
)
def test_a_change_by_an_unprivileged_user_clears_setuid_and_setgid(
    slot: Slot, change: Callable[[os.PathLike[str]], None], before: int, after: int
) -> None:
    path = slot / "file"
    path.chmod(before)
    as_user(ALICE, change, path)
    assert mode(path) == after
    assert os.stat(path).st_uid == 0


@pytest.mark.parametrize("change", CHANGES)
def test_setgid_without_group_execution_is_kept_for_members(
    slot: Slot, change: Callable[[os.PathLike[str]], None]
) -> None:
    path = slot / "file"
    os.chown(path, 0, 500)
    path.chmod(0o2766)
    as_user(ALICE, change, path, groups=(500,))
    assert mode(path) == 0o2766


@pytest.mark.parametrize("change", CHANGES)
def test_root_keeps_setuid_and_setgid(
    slot: Slot, change: Callable[[os.PathLike[str]], None]
) -> None:
    (slot / "file").chmod(0o6755)
    change(slot / "file")
    assert mode(slot / "file") == 0o6755


@pytest.mark.parametrize("change", CHANGES)
def test_root_clears_capabilities_and_keeps_setuid(
    slot: Slot, change: Callable[[os.PathLike[str]], None]
) -> None:
    path = slot / "file"
    path.chmod(0o6755)
    os.setxattr(path, CAPABILITY, NET_RAW)
    change(path)
    assert mode(path) == 0o6755
    assert errno_of(os.getxattr, path, CAPABILITY) == "ENODATA"


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_clears_capabilities(
    slot: Slot, change: Callable[[os.PathLike[str]], None]
) -> None:
    path = slot / "file"
    path.chmod(0o777)
    os.setxattr(path, CAPABILITY, NET_RAW)
    as_user(ALICE, change, path)
    assert errno_of(os.getxattr, path, CAPABILITY) == "ENODATA"


def test_bits_set_while_the_file_is_open_go_at_the_next_write(slot: Slot) -> None:
    path = slot / "file"
    path.chmod(0o666)

    def write_twice() -> None:
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, b"1")
        os.write(ready_out, b"1")
        os.read(go_in, 1)
        os.write(fd, b"2")

    ready_in, ready_out = os.pipe()
    go_in, go_out = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            as_user(ALICE, write_twice)
            os._exit(0)
        finally:
            os._exit(1)
    os.read(ready_in, 1)
    path.chmod(0o6777)
    os.setxattr(path, CAPABILITY, NET_RAW)
    os.write(go_out, b"1")
    assert os.waitpid(pid, 0)[1] == 0
    assert mode(path) == 0o777
    assert errno_of(os.getxattr, path, CAPABILITY) == "ENODATA"
    for fd in (ready_in, ready_out, go_in, go_out):
        os.close(fd)


@pytest.mark.parametrize("uid", [0, ALICE])
def test_chown_clears_whoever_does_it(slot: Slot, uid: int) -> None:
    path = slot / "file"
    os.chown(path, uid, uid)
    for target in ((uid, uid), (-1, uid), (uid, -1), (-1, -1)):
        path.chmod(0o6775)
        os.setxattr(path, CAPABILITY, NET_RAW)
        as_user(uid, os.chown, path, *target)
        assert mode(path) == 0o775, target
        assert errno_of(os.getxattr, path, CAPABILITY) == "ENODATA"
    os.chown(slot / "full", uid, uid)
    (slot / "full").chmod(0o6775)
    as_user(uid, os.chown, slot / "full", -1, uid)
    assert mode(slot / "full") == 0o6775


def test_chown_keeps_setgid_without_group_execution_for_root(slot: Slot) -> None:
    path = slot / "file"
    path.chmod(0o2766)
    os.chown(path, 0, 500)
    assert mode(path) == 0o2766


def test_a_store_through_a_mapping_does_not_hide_later_clearing(slot: Slot) -> None:
    path = slot / "file"
    path.chmod(0o6777)
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 4096) as mapping:
        mapping[0] = 65
        mapping.flush()
    os.close(fd)
    as_user(ALICE, write, path)
    assert mode(path) == 0o777


def test_an_unprivileged_writer_leaves_no_setuid_program_behind(slot: Slot) -> None:
    """The program that runs after the write has its caller's ids, not the owner's."""
    program = slot / "program"
    with open("/usr/bin/id", "rb") as source:
        program.write_bytes(source.read())
    program.chmod(0o4777)

    def run() -> bytes:
        return subprocess.run([program, "-u"], capture_output=True, check=True).stdout

    assert as_user(ALICE, run) == b"0\n"
    as_user(ALICE, append, program)
    assert as_user(ALICE, run) == b"%d\n" % ALICE
