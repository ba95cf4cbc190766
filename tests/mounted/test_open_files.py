"""Descriptors, mappings and locks: what an open file is, whatever happens to its name."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import select
import stat
import subprocess
import time
from pathlib import Path

import pytest

from tests.mounted.slots import CONTENT, Slot
from tests.mounted.subject import Subject
from tests.mounted.users import errno_of


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
@pytest.mark.parametrize("way", ["unlink", "rename over"])
def test_an_unlinked_file_lives_on_in_its_descriptor(
    slot: Slot, subject: Subject, flags: int, way: str
) -> None:
    lower = flags == os.O_RDONLY and slot.place != "upper"
    frozen = lower and "unlinked_lower" in subject.limits
    path = slot / "file"
    fd = os.open(path, flags)
    ino = os.fstat(fd).st_ino
    if way == "unlink":
        os.unlink(path)
    else:
        os.rename(slot / "other", path)
        os.unlink(path)
    assert os.read(fd, 4) == CONTENT[:4]
    found = os.fstat(fd)
    assert (found.st_ino, found.st_nlink, found.st_size) == (ino, int(frozen), len(CONTENT))
    if frozen:
        assert errno_of(os.fchmod, fd, 0o123) == "EEXIST"
        os.close(fd)
        return
    os.fchmod(fd, 0o123)
    os.fchown(fd, 11, 12)
    os.utime(fd, ns=(5, 6))
    found = os.fstat(fd)
    assert stat.S_IMODE(found.st_mode) == 0o123
    assert (found.st_uid, found.st_gid, found.st_atime_ns, found.st_mtime_ns) == (11, 12, 5, 6)
    os.setxattr(fd, "user.x", b"y")
    assert os.getxattr(fd, "user.x") == b"y"
    if flags == os.O_RDWR:
        os.ftruncate(fd, 10)
        assert os.pwrite(fd, b"tail", 10) == 4
        assert os.pread(fd, 100, 0) == CONTENT[:10] + b"tail"
        os.fsync(fd)
        assert os.fstat(fd).st_size == 14
    # A new file of that name is another one.
    path.write_bytes(b"new")
    assert os.stat(path).st_ino != ino
    os.close(fd)
    assert path.read_bytes() == b"new"


def test_an_unlinked_link_counts_down_and_not_to_zero(slot: Slot) -> None:
    fd = os.open(slot / "hard1", os.O_RDONLY)
    os.unlink(slot / "hard1")
    assert os.fstat(fd).st_nlink == 1
    os.unlink(slot / "hard2")
    assert os.fstat(fd).st_nlink == 0
    assert os.read(fd, 10) == b"linked"
    os.close(fd)


def test_an_unlinked_file_can_be_opened_again_through_proc(slot: Slot) -> None:
    fd = os.open(slot / "file", os.O_RDWR)
    os.unlink(slot / "file")
    with open(f"/proc/self/fd/{fd}", "r+b") as again:
        again.write(b"again")
    assert os.pread(fd, 5, 0) == b"again"
    os.close(fd)


def test_a_removed_directory_lives_on_empty(slot: Slot, subject: Subject) -> None:
    fd = os.open(slot / "empty", os.O_RDONLY)
    os.rmdir(slot / "empty")
    frozen = slot.place != "upper" and "unlinked_lower" in subject.limits
    if not frozen:
        assert os.fstat(fd).st_nlink == 0
    assert os.listdir(fd) == []
    assert errno_of(os.mkdir, "x", dir_fd=fd) == "ENOENT"
    assert errno_of(os.open, "x", os.O_CREAT | os.O_WRONLY, dir_fd=fd) == "ENOENT"
    assert errno_of(os.stat, "x", dir_fd=fd) == "ENOENT"
    if frozen:
        assert errno_of(os.fchmod, fd, 0o711) != ""
    else:
        os.fchmod(fd, 0o711)
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o711
    os.close(fd)


def test_a_reader_that_came_first_sees_what_is_written_later(slot: Slot) -> None:
    reader = os.open(slot / "file", os.O_RDONLY)
    assert os.pread(reader, 4, 0) == CONTENT[:4]
    with open(slot / "file", "r+b") as writer:
        writer.write(b"WRIT")
    assert os.pread(reader, 4, 0) == b"WRIT"
    with open(slot / "file", "ab") as writer:
        writer.write(b"more")
    assert os.pread(reader, 10, len(CONTENT)) == b"more"
    assert os.fstat(reader).st_size == len(CONTENT) + 4
    os.truncate(slot / "file", 2)
    assert os.pread(reader, 10, 0) == b"WR"
    os.close(reader)


def test_descriptors_follow_renames(slot: Slot) -> None:
    fd = os.open(slot / "full" / "inner", os.O_RDONLY)
    directory = os.open(slot / "full", os.O_RDONLY)
    os.rename(slot / "full", slot / "moved")
    os.rename(slot / "moved" / "inner", slot / "inner2")
    os.fchmod(fd, 0o640)
    assert stat.S_IMODE(os.stat(slot / "inner2").st_mode) == 0o640
    os.mkdir("below", dir_fd=directory)
    assert (slot / "moved" / "below").is_dir()
    assert sorted(os.listdir(directory)) == ["below"]
    os.close(fd)
    os.close(directory)


def test_appending_writers_do_not_overwrite_each_other(slot: Slot) -> None:
    first = os.open(slot / "file", os.O_WRONLY | os.O_APPEND)
    second = os.open(slot / "file", os.O_WRONLY | os.O_APPEND)
    for number in range(20):
        os.write(first if number % 2 else second, b"%04d" % number)
    os.close(first)
    os.close(second)
    expected = CONTENT + b"".join(b"%04d" % number for number in range(20))
    assert (slot / "file").read_bytes() == expected


def test_opening_with_truncation_empties_for_everybody(slot: Slot) -> None:
    reader = os.open(slot / "file", os.O_RDONLY)
    os.close(os.open(slot / "file", os.O_WRONLY | os.O_TRUNC))
    assert os.fstat(reader).st_size == 0
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert errno_of(os.open, slot / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY) == "EEXIST"
    assert errno_of(os.open, slot / "symlink", os.O_CREAT | os.O_EXCL | os.O_WRONLY) == "EEXIST"


def test_direct_reads_and_writes(slot: Slot) -> None:
    try:
        fd = os.open(slot / "file", os.O_RDWR | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        pytest.skip("the filesystem below has no O_DIRECT")
    with mmap.mmap(-1, 4096) as buffer:
        buffer[:] = b"d" * 4096
        assert os.pwritev(fd, [buffer], 0) == 4096
        assert os.preadv(fd, [buffer], 4096) == 4096
        assert buffer[:] == CONTENT[4096:8192]
    os.close(fd)
    assert (slot / "file").read_bytes() == b"d" * 4096 + CONTENT[4096:]


def test_shared_mappings_and_descriptors_are_coherent(slot: Slot) -> None:
    fd = os.open(slot / "file", os.O_RDWR)
    with mmap.mmap(fd, len(CONTENT)) as mapping:
        os.pwrite(fd, b"by write", 100)
        assert mapping[100:108] == b"by write"
        mapping[200:206] = b"by map"
        assert os.pread(fd, 6, 200) == b"by map"
        with open(slot / "file", "rb") as other:
            assert os.pread(other.fileno(), 6, 200) == b"by map"
        mapping.flush()
        os.unlink(slot / "file")
        mapping[0:1] = b"!"
        mapping.flush()
        assert os.pread(fd, 1, 0) == b"!"
    os.close(fd)


def test_private_mappings_keep_their_stores(slot: Slot) -> None:
    with open(slot / "file", "rb") as file:
        with mmap.mmap(file.fileno(), 4096, flags=mmap.MAP_PRIVATE, prot=3) as mapping:
            mapping[0:4] = b"mine"
            assert mapping[0:4] == b"mine"
        assert os.pread(file.fileno(), 4, 0) == CONTENT[:4]


def test_flock_excludes_across_names_and_copy_up(slot: Slot) -> None:
    with open(slot / "hard1", "rb") as first, open(slot / "hard2", "r+b") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        assert errno_of(fcntl.flock, second, fcntl.LOCK_EX | fcntl.LOCK_NB) == "EAGAIN"
        fcntl.flock(first, fcntl.LOCK_UN)
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_record_locks_exclude_other_processes(slot: Slot) -> None:
    with open(slot / "file", "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 100, 50)
        pid = os.fork()
        if pid == 0:
            with open(slot / "file", "r+b") as other:
                flags = fcntl.LOCK_EX | fcntl.LOCK_NB
                inside = errno_of(fcntl.lockf, other, flags, 10, 100)
                outside = errno_of(fcntl.lockf, other, flags, 10, 0)
            os._exit(0 if (inside, outside) in (("EAGAIN", ""), ("EACCES", "")) else 1)
        assert os.waitpid(pid, 0)[1] == 0


def test_waiting_for_a_file_does_not_wait(slot: Slot) -> None:
    """poll(2) asks nobody: a file is always ready."""
    with open(slot / "file", "r+b") as file:
        poller = select.poll()
        poller.register(file, select.POLLIN | select.POLLOUT | select.POLLPRI)
        assert poller.poll(0) == [(file.fileno(), select.POLLIN | select.POLLOUT)]


def test_a_lock_ends_with_its_holder(slot: Slot) -> None:
    pid = os.fork()
    if pid == 0:
        with open(slot / "file", "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            fcntl.lockf(file, fcntl.LOCK_EX)
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    with open(slot / "file", "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_programs_run_from_the_mount(slot: Slot) -> None:
    assert subprocess.run([slot / "exe"], check=False).returncode == 7
    assert errno_of(subprocess.run, [slot / "file"], check=False) == "EACCES"
    (slot / "true").write_bytes(Path("/bin/true").read_bytes())
    (slot / "true").chmod(0o755)
    assert subprocess.run([slot / "true"], check=False).returncode == 0


def test_a_program_replaced_while_it_runs_runs_on(slot: Slot) -> None:
    program = slot / "program"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    with subprocess.Popen([program, "60"]) as running:
        os.rename(slot / "exe", program)
        time.sleep(0.05)
        assert running.poll() is None
        running.kill()


def test_syncing_works_on_files_and_directories(slot: Slot) -> None:
    for name in ("file", "full"):
        fd = os.open(slot / name, os.O_RDONLY)
        os.fsync(fd)
        os.fdatasync(fd)
        os.close(fd)
    with open(slot / "file", "r+b") as file:
        file.write(b"synced")
        file.flush()
        os.fsync(file.fileno())
    os.sync()


def test_a_copy_within_the_mount_by_every_means(slot: Slot, subject: Subject) -> None:
    with open(slot / "file", "rb") as source, open(slot / "copy", "w+b") as target:
        assert os.copy_file_range(source.fileno(), target.fileno(), 1000, 5, 7) == 1000
        assert os.pread(target.fileno(), 2000, 7) == CONTENT[5:1005]
    with open(slot / "file", "rb") as source, open(slot / "sent", "w+b") as target:
        assert os.sendfile(target.fileno(), source.fileno(), 0, 5000) == 5000
    assert (slot / "sent").read_bytes() == CONTENT[:5000]


def test_statfs_tells_of_the_upper(slot: Slot, subject: Subject) -> None:
    found, below = os.statvfs(slot.dir), os.statvfs(subject.upper)
    assert (found.f_frsize, found.f_blocks, found.f_files) == (
        below.f_frsize, below.f_blocks, below.f_files,
    )  # fmt: skip
    assert found.f_namemax == below.f_namemax == 255
