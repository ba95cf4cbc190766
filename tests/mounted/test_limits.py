"""What a subject cannot do: asserted, so that the day it can is noticed. See SEMANTICS.md."""

from __future__ import annotations

import ctypes
import fcntl
import os

import pytest

from overlayfs_py import syscalls
from tests.mounted.slots import CONTENT, Slot
from tests.mounted.subject import Subject
from tests.mounted.users import errno_of

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
GETFLAGS = 0x80086601


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("mode", [0, KEEP_SIZE, KEEP_SIZE | PUNCH_HOLE, ZERO_RANGE])
def test_fallocate(slot: Slot, subject: Subject, mode: int) -> None:
    fd = os.open(slot / "file", os.O_RDWR)
    try:
        if "fallocate" in subject.limits:
            assert errno_of(fallocate, fd, mode, 0, 4096) == "EOPNOTSUPP"
            assert os.pread(fd, len(CONTENT), 0) == CONTENT
            return
        fallocate(fd, mode, 0, 4096)
        zeroed = mode in (KEEP_SIZE | PUNCH_HOLE, ZERO_RANGE)
        expected = bytes(4096) if zeroed else CONTENT[:4096]
        assert os.pread(fd, 4096, 0) == expected
        fallocate(fd, mode, len(CONTENT), 4096)
        grown = 0 if mode & KEEP_SIZE else 4096
        assert os.fstat(fd).st_size == len(CONTENT) + grown
    finally:
        os.close(fd)


def test_posix_fallocate_works_everywhere(slot: Slot) -> None:
    """glibc writes one byte per block where fallocate is not to be had."""
    fd = os.open(slot / "file", os.O_RDWR)
    os.posix_fallocate(fd, 0, len(CONTENT) + 5000)
    assert os.fstat(fd).st_size == len(CONTENT) + 5000
    assert os.pread(fd, len(CONTENT) + 5000, 0) == CONTENT + bytes(5000)
    os.close(fd)


def test_a_file_without_a_name(slot: Slot, subject: Subject) -> None:
    if "tmpfile" in subject.limits:
        assert errno_of(os.open, slot.dir, os.O_TMPFILE | os.O_RDWR, 0o600) == "EOPNOTSUPP"
        return
    fd = os.open(slot.dir, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"nameless")
    assert os.fstat(fd).st_nlink == 0
    os.link(f"/proc/self/fd/{fd}", slot / "named", src_dir_fd=fd, follow_symlinks=True)
    os.close(fd)
    assert (slot / "named").read_bytes() == b"nameless"


def test_seeking_data_and_holes(slot: Slot, subject: Subject) -> None:
    """Without the daemon's help the kernel takes the whole file for data (generic_file_llseek)."""
    with open(slot / "sparse", "wb") as file:
        file.truncate(4 << 20)
        file.seek(2 << 20)
        file.write(b"island")
        file.flush()
        os.fsync(file.fileno())
    fd = os.open(slot / "sparse", os.O_RDONLY)
    data = os.lseek(fd, 0, os.SEEK_DATA)
    hole = os.lseek(fd, 2 << 20, os.SEEK_HOLE)
    if "seek_data" in subject.limits:
        assert (data, hole) == (0, 4 << 20)
    else:
        assert 0 < data <= 2 << 20
        assert 2 << 20 < hole < 4 << 20
    assert errno_of(os.lseek, fd, 4 << 20, os.SEEK_DATA) == "ENXIO"
    os.close(fd)


def test_inode_flags(slot: Slot, subject: Subject) -> None:
    fd = os.open(slot / "file", os.O_RDONLY)
    try:
        found = errno_of(fcntl.ioctl, fd, GETFLAGS, bytes(4))
        assert found == ("ENOTTY" if "inode_flags" in subject.limits else "")
    finally:
        os.close(fd)


def test_the_time_of_birth(slot: Slot, subject: Subject) -> None:
    """It is that of the real object, which is another after a copy-up."""
    path = slot / "file"
    home = subject.upper if slot.place == "upper" else subject.lower
    if "birth" in subject.limits:
        assert birth_ns(path) is None
        return
    assert birth_ns(path) == birth_ns(home / slot.dir.name / "file")
    (slot / "new").touch()
    assert birth_ns(slot / "new") == birth_ns(subject.upper / slot.dir.name / "new")
    assert birth_ns(slot / "new") > birth_ns(path)  # type: ignore[operator]
    path.chmod(0o600)
    subject.forget()
    assert birth_ns(path) == birth_ns(subject.upper / slot.dir.name / "file")
    with open(slot / "file", "rb") as file:
        assert birth_ns(path) is not None
        assert os.fstat(file.fileno()).st_size == len(CONTENT)


def birth_ns(path: os.PathLike[str]) -> int | None:
    return syscalls.birth_ns(syscalls.AT_FDCWD, os.fsencode(path))
