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
