"""Which files the kernel serves by itself: what can still be read while the daemon is stopped."""

from __future__ import annotations

import mmap
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mounted.subject import Device, Subject

pytestmark = pytest.mark.mount

LOWER, UPPER = b"lower" * 2000, b"upper" * 2000

Mount = Callable[..., Device]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    running: list[Subject] = []

    def start(read_only: bool = False) -> Device:
        subject = Device(tmp_path, read_only)
        (subject.lower / "low").write_bytes(LOWER)
        (subject.upper / "up").write_bytes(UPPER)
        subject.start()
        running.append(subject)
        if not _kernel_has_passthrough():
            pytest.skip("passthrough needs Linux 6.9")
        return subject

    yield start
    for subject in running:
        subject.stop()


def _kernel_has_passthrough() -> bool:
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int(minor)) >= (6, 9)


def _state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


@contextmanager
def stopped(subject: Device) -> Iterator[None]:
    assert subject._process is not None
    subject._process.send_signal(signal.SIGSTOP)
    # Each of its threads notices when it next runs.
    while any(_state(task) != "T" for task in Path(f"/proc/{subject._process.pid}/task").iterdir()):
        time.sleep(0.001)
    try:
        yield
    finally:
        subject._process.send_signal(signal.SIGCONT)


def reads_alone(subject: Device, fd: int) -> bytes | None:
    """What is read from `fd` without the daemon; None: nothing within half a second."""
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(os.pread(fd, 1 << 20, 0)))
    with stopped(subject):
        reader.start()
        reader.join(0.5)
        alone = list(found)
    reader.join(10)
    assert found
    return alone[0] if alone else None


def test_a_file_of_the_upper_is_read_without_the_daemon(mount: Mount) -> None:
    subject = mount()
    with open(subject.mountpoint / "up", "rb") as file:
        assert reads_alone(subject, file.fileno()) == UPPER


def test_a_new_file_is_read_and_written_without_the_daemon(mount: Mount) -> None:
    subject = mount()
    fd = os.open(subject.mountpoint / "new", os.O_CREAT | os.O_RDWR)
    # The kernel asks once whether there is a capability to remove.
    os.pwrite(fd, b"first", 0)
    with stopped(subject):
        assert os.pwrite(fd, b"alone", 0) == 5
        assert os.pread(fd, 10, 0) == b"alone"
    assert os.fstat(fd).st_size == 5
    os.close(fd)
    assert (subject.upper / "new").read_bytes() == b"alone"


def test_a_lower_file_is_not_handed_over_where_it_may_be_copied_up(mount: Mount) -> None:
    subject = mount()
    with open(subject.mountpoint / "low", "rb") as file:
        assert reads_alone(subject, file.fileno()) is None


def test_every_file_of_a_mount_without_an_upper_is(tmp_path: Path) -> None:
    class Lowers(Device):
        def options(self) -> str:
            return f"lowerdir={self.upper}:{self.lower}"

    subject = Lowers(tmp_path)
    (subject.lower / "low").write_bytes(LOWER)
    subject.start()
    try:
        if not _kernel_has_passthrough():
            pytest.skip("passthrough needs Linux 6.9")
        with open(subject.mountpoint / "low", "rb") as file:
            assert reads_alone(subject, file.fileno()) == LOWER
    finally:
        subject.stop()


def test_a_descriptor_from_before_the_copy_up_sees_what_is_written_after(mount: Mount) -> None:
    """All opens of an inode are in passthrough or none, so the writer is not either."""
    subject = mount()
    path = subject.mountpoint / "low"
    with open(path, "rb", buffering=0) as before:
        view = mmap.mmap(before.fileno(), 0, prot=mmap.PROT_READ)
        assert before.read(5) == b"lower"
        with open(path, "r+b", buffering=0) as writer:
            writer.write(b"LATER")
            assert os.pread(before.fileno(), 5, 0) == b"LATER"
            assert view[:5] == b"LATER"
            with open(path, "rb") as third:
                assert third.read(5) == b"LATER"
        view.close()
    with open(path, "r+b", buffering=0) as again:
        again.write(b"THREE")
        assert reads_alone(subject, again.fileno()) == b"THREE" + LOWER[5:]
    assert path.read_bytes() == b"THREE" + LOWER[5:]


def test_what_a_mapping_writes_shows_in_the_times(mount: Mount) -> None:
    """A store through a mapping reaches the real file without a request."""
    subject = mount()
    path = subject.mountpoint / "up"
    os.utime(path, ns=(0, 0))
    with open(path, "r+b") as file:
        view = mmap.mmap(file.fileno(), 0)
        assert os.stat(path).st_mtime_ns == 0
        view[0:1] = b"U"
        view.flush()
        assert os.stat(path).st_mtime_ns > 0
        os.utime(path, ns=(0, 0))
        view[0:1] = b"V"
        view.flush()
        view.close()
    assert os.stat(path).st_mtime_ns > 0
    assert path.read_bytes()[:1] == b"V"


def test_many_opens_of_many_files_leave_nothing_behind(mount: Mount) -> None:
    subject = mount()
    assert subject._process is not None
    descriptors = Path(f"/proc/{subject._process.pid}/fd")
    before = len(list(descriptors.iterdir()))
    for round in range(3):
        opened = [
            os.open(subject.mountpoint / f"n{number % 50}", os.O_CREAT | os.O_RDWR)
            for number in range(150)
        ]
        for fd in opened:
            os.write(fd, b"%d" % round)
            os.close(fd)
    for _ in range(100):
        os.stat(subject.mountpoint / "up")
        if len(list(descriptors.iterdir())) <= before + 2:
            break
    assert len(list(descriptors.iterdir())) <= before + 2


@pytest.fixture
def accepting(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> Device:
    """Mounted with passthrough=lower."""
    options = Device.options
    monkeypatch.setattr(Device, "options", lambda self: options(self) + ",passthrough=lower")
    return mount()


def test_a_lower_file_is_handed_over_where_that_is_accepted(accepting: Device) -> None:
    with open(accepting.mountpoint / "low", "rb") as file:
        assert reads_alone(accepting, file.fileno()) == LOWER


def test_its_copy_is_another_inode_of_the_kernel_and_the_same_file(accepting: Device) -> None:
    path = accepting.mountpoint / "low"
    with open(path, "rb", buffering=0) as before:
        number = os.fstat(before.fileno()).st_ino
        with open(path, "r+b", buffering=0) as writer:
            assert os.fstat(writer.fileno()).st_ino == os.stat(path).st_ino == number
            writer.write(b"LATER")
            assert reads_alone(accepting, writer.fileno()) == b"LATER" + LOWER[5:]
            assert os.pread(before.fileno(), 5, 0) == b"lower", "this is what is accepted"
            with open(path, "rb") as third:
                assert third.read(5) == b"LATER"
            assert os.fstat(before.fileno()).st_size == len(LOWER)
            writer.truncate(7)
            assert os.fstat(before.fileno()).st_size == os.stat(path).st_size == 7
    assert path.read_bytes() == b"LATERlo"


@pytest.mark.parametrize("way", ["truncate", "chmod", "O_TRUNC", "O_CREAT", "rename over"])
def test_every_way_of_changing_it_is_seen_by_who_opens_it_then(accepting: Device, way: str) -> None:
    path = accepting.mountpoint / "low"
    with open(path, "rb") as before:
        if way == "truncate":
            os.truncate(path, 5)
        elif way == "chmod":
            path.chmod(0o600)
        elif way == "rename over":
            os.rename(accepting.mountpoint / "up", path)
        else:
            flags = os.O_TRUNC if way == "O_TRUNC" else os.O_CREAT | os.O_TRUNC
            with open(os.open(path, os.O_WRONLY | flags, 0o600), "wb") as writer:
                writer.write(b"new")
        expected = {"truncate": b"lower", "chmod": LOWER, "rename over": UPPER}
        assert path.read_bytes() == expected.get(way, b"new")
        with open(path, "r+b") as writer:
            writer.write(b"W")
        assert path.read_bytes()[:1] == b"W"
        assert before.read(5) == b"lower"


def test_both_inodes_show_the_same_attributes_whoever_changes_them(accepting: Device) -> None:
    path = accepting.mountpoint / "low"
    with open(path, "rb") as old, open(path, "r+b") as new:
        for number, (changed, seen) in enumerate([(old, new), (new, old)] * 2):
            os.fchmod(changed.fileno(), 0o600 + number)
            os.utime(changed.fileno(), ns=(number, number))
            os.fchown(changed.fileno(), number, number)
            os.setxattr(changed.fileno(), "user.x", b"%d" % number)
            status = os.fstat(seen.fileno())
            assert (status.st_mode & 0o777, status.st_mtime_ns) == (0o600 + number, number)
            assert (status.st_uid, status.st_gid) == (number, number)
            assert os.getxattr(seen.fileno(), "user.x") == b"%d" % number
        os.link(path, accepting.mountpoint / "again")
        assert os.fstat(old.fileno()).st_nlink == os.fstat(new.fileno()).st_nlink == 2
        os.unlink(path)
        os.unlink(accepting.mountpoint / "again")
        assert os.fstat(old.fileno()).st_nlink == os.fstat(new.fileno()).st_nlink == 0


def test_another_name_of_it_leads_to_the_copy_as_well(accepting: Device) -> None:
    accepting.stop()
    os.link(accepting.lower / "low", accepting.lower / "link")
    accepting.start()
    path, other = accepting.mountpoint / "low", accepting.mountpoint / "link"
    with open(path, "rb") as before, open(other, "rb") as under_the_other_name:
        with open(path, "r+b") as writer:
            writer.write(b"LATER")
        assert other.read_bytes() == path.read_bytes() == b"LATER" + LOWER[5:]
        assert os.stat(other).st_ino == os.stat(path).st_ino
        assert before.read(5) == under_the_other_name.read(5) == b"lower"


def test_opens_and_copies_in_any_number_leave_nothing_behind(accepting: Device) -> None:
    assert accepting._process is not None
    accepting.stop()
    for number in range(30):
        (accepting.lower / f"n{number}").write_bytes(b"%d" % number * 100)
    accepting.start()
    descriptors = Path(f"/proc/{accepting._process.pid}/fd")
    before = len(list(descriptors.iterdir()))
    for number in range(30):
        path = accepting.mountpoint / f"n{number}"
        readers = [os.open(path, os.O_RDONLY) for _ in range(3)]
        with open(path, "r+b") as writer:
            writer.write(b"W")
        with mmap.mmap(readers[0], 0, prot=mmap.PROT_READ) as view:
            assert view[:1] == b"%d" % (number // 10 or number)
        for reader in readers:
            os.close(reader)
        assert path.read_bytes()[:1] == b"W"
    accepting.forget()
    for number in range(30):
        assert (accepting.mountpoint / f"n{number}").read_bytes()[:1] == b"W"
    for _ in range(200):
        os.stat(accepting.mountpoint / "up")
        if len(list(descriptors.iterdir())) <= before + 2:
            break
        time.sleep(0.01)
    assert len(list(descriptors.iterdir())) <= before + 2


def test_nothing_is_handed_over_where_that_is_off(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Device.options
    monkeypatch.setattr(Device, "options", lambda self: options(self) + ",passthrough=off")
    subject = mount()
    with open(subject.mountpoint / "up", "rb") as file:
        assert reads_alone(subject, file.fileno()) is None


def test_pages_are_kept_across_opens_where_nothing_is_handed_over(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Device.options
    monkeypatch.setattr(Device, "options", lambda self: options(self) + ",passthrough=off")
    subject = mount()
    for name, content in (("low", LOWER), ("up", UPPER)):
        assert (subject.mountpoint / name).read_bytes() == content
        with open(subject.mountpoint / name, "rb") as again:
            assert reads_alone(subject, again.fileno()) == content
