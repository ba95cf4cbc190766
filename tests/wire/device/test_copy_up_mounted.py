"""Opens that copy up, through the kernel: with the lane and without, what is on disk and what is seen is the same."""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from overlayfs_py.wire.lane import compiled
from tests.mounted.subject import Device, Kernel, Plain
from tests.wire.device import copies
from tests.wire.device.copies import PLAIN, found
from tests.wire.device.stops import Stops

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(compiled() is None, reason="no compiled lane"),
]


def _opened(flags: int, data: bytes = b"") -> Callable[[Path], None]:
    def change(path: Path) -> None:
        fd = os.open(path, flags)
        try:
            if data:
                assert os.write(fd, data) == len(data)
        finally:
            os.close(fd)

    return change


WAYS: dict[str, Callable[[Path], None]] = {
    "append": _opened(os.O_WRONLY | os.O_APPEND, b"more"),
    "write": _opened(os.O_RDWR, b"new"),
    "only open": _opened(os.O_WRONLY),
    "O_TRUNC": _opened(os.O_WRONLY | os.O_TRUNC, b"all"),
    "O_TRUNC, O_CREAT": _opened(os.O_RDWR | os.O_TRUNC | os.O_CREAT, b"all"),
    "O_TRUNC, O_RDONLY": _opened(os.O_RDONLY | os.O_TRUNC),
    "truncate": lambda path: os.truncate(path, 7),
    "chmod": lambda path: path.chmod(0o600),
    "rename": lambda path: os.rename(path, path.with_name("renamed")),
    "link": lambda path: os.link(path, path.with_name("link")),
}
BY_THE_LANE = ("append", "write", "only open", "O_TRUNC", "O_TRUNC, O_CREAT", "truncate", "chmod")


@contextmanager
def mounted(
    kind: type[Device], directory: Path, lower: Path, options: str = "", **environment: str
) -> Iterator[Device]:
    """A mount on the lower directory, its upper, work and mountpoint in `directory`."""

    class Chosen(kind):  # type: ignore[misc,valid-type]
        environment: ClassVar[dict[str, str]] = {**kind.environment}

        def options(self) -> str:
            return f"{super().options()},fsync=0{options}"

    Chosen.environment.update(environment)
    directory.mkdir()
    subject = Chosen(directory, lowers=[lower])
    subject.start()
    try:
        yield subject
    finally:
        subject.stop()


@pytest.fixture(scope="module")
def lower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("lower")
    copies.lay(directory)
    return directory


@pytest.fixture(scope="module")
def stops(tmp_path_factory: pytest.TempPathFactory) -> Stops:
    return Stops(tmp_path_factory.mktemp("stops"))


def _found(top: Path, *changed: str) -> dict[str, dict[str, Any]]:
    """All that is there but for the times of files, and of the directories in which names were made."""
    seen = found(top, times=False)
    for directory in changed:
        del seen[directory]["times"]
    return seen


@pytest.mark.parametrize("options", ["", ",passthrough=off", ",passthrough=lower"])
def test_every_way_leaves_what_python_leaves(lower: Path, options: str, tmp_path: Path) -> None:
    """Each of a file of its own kind, in one mount after the other; read before, by a descriptor that stays open in the
    second half."""
    uppers, unions = [], []
    kinds = ("plain", "edge", "owned", "xattr", "sparse", "setuid", "over")
    for kind in (Device, Plain):
        seen: dict[str, Any] = {}
        with mounted(kind, tmp_path / kind.name, _many(tmp_path, lower), options) as subject:
            for name in kinds:
                for number, (way, change) in enumerate(WAYS.items()):
                    path = subject.mountpoint / way / name
                    ino = path.stat().st_ino
                    before = os.open(path, os.O_RDONLY)
                    assert os.pread(before, 5, 0) == (lower / name).read_bytes()[:5]
                    if number % 2:
                        os.close(before)
                    change(path)
                    now = next(path.parent.glob(f"{name}*"), path.with_name("renamed"))
                    status = now.stat()
                    if not number % 2:
                        if options != ",passthrough=lower":
                            assert os.pread(before, 1 << 20, 0) == now.read_bytes()
                        assert os.fstat(before).st_ino == ino
                        os.close(before)
                    listed = {entry.name: entry.inode() for entry in os.scandir(path.parent)}
                    seen[f"{way}/{name}"] = (
                        *(now.read_bytes(), status.st_mode, status.st_ino == ino),
                        *(listed[now.name] == ino, status.st_size, status.st_nlink),
                    )
                    if way == "rename":
                        now.rename(path.with_name(f"renamed-{name}"))
                    if way == "link":
                        path.with_name("link").rename(path.with_name(f"link-{name}"))
        unions.append(seen)
        uppers.append(_found(subject.upper, ".", "link", "rename"))
    for which, values in unions[0].items():
        assert values == unions[1][which], which
    assert uppers[0] == uppers[1]


def _many(scratch: Path, lower: Path) -> Path:
    """A lower directory with all files once for each way."""
    top = scratch / "many"
    if not top.exists():
        for way in WAYS:
            (top / way).mkdir(parents=True)
            copies.lay(top / way)
    return top


@pytest.mark.parametrize("way", WAYS)
def test_which_copies_are_the_lanes(lower: Path, way: str, stops: Stops, tmp_path: Path) -> None:
    """Told by the system calls that it makes for one."""
    with mounted(Device, tmp_path / "one", lower, **stops.environment) as subject:
        for name in PLAIN:
            path = subject.mountpoint / name
            path.stat()
            stops.arm()
            WAYS[way](path)
            path.exists()
            (subject.mountpoint / "link").unlink(missing_ok=True)
            copied = stops.disarm() > 12
            assert copied == (way in BY_THE_LANE), name


@pytest.mark.parametrize("way", ["append", "O_TRUNC"])
def test_an_open_that_fails_in_the_middle_is_done_by_python(
    lower: Path, way: str, stops: Stops, tmp_path: Path
) -> None:
    with mounted(
        Device, tmp_path / "one", _copies_of(lower, tmp_path), **stops.environment
    ) as subject:
        for call in range(40):
            path = subject.mountpoint / f"plain{call}"
            ino = path.stat().st_ino
            stops.arm(call)
            WAYS[way](path)
            calls = stops.disarm()
            content = (lower / "plain").read_bytes() + b"more" if way == "append" else b"all"
            assert path.read_bytes() == (subject.upper / path.name).read_bytes() == content
            assert path.stat().st_ino == ino
            assert os.getxattr(subject.upper / path.name, "trusted.overlay.origin")
            if call > calls:
                break
        else:
            raise AssertionError("no end of calls")
        assert call > 12
        assert os.listdir(subject.scratch / "work" / "work") == []


def _copies_of(lower: Path, scratch: Path) -> Path:
    top = scratch / "same"
    top.mkdir()
    for number in range(40):
        (top / f"plain{number}").write_bytes((lower / "plain").read_bytes())
    return top


def test_later_mounts_and_the_kernel_show_the_copy(lower: Path, tmp_path: Path) -> None:
    with mounted(Device, tmp_path / "one", lower) as subject:
        numbers = {name: (subject.mountpoint / name).stat().st_ino for name in PLAIN}
        for name in PLAIN:
            WAYS["append"](subject.mountpoint / name)
        for _ in range(2):
            _assert_shown(subject.mountpoint, lower, numbers)
            subject.forget()
        subject.remount()
        _assert_shown(subject.mountpoint, lower, numbers)
    oracle = Kernel.__new__(Kernel)
    oracle.scratch, oracle.lowers, oracle.read_only = subject.scratch, subject.lowers, False
    oracle.start()
    try:
        _assert_shown(oracle.mountpoint, lower, numbers)
    finally:
        oracle.stop()


def _assert_shown(mountpoint: Path, lower: Path, numbers: dict[str, int]) -> None:
    listed = {entry.name: entry.inode() for entry in os.scandir(mountpoint)}
    for name in PLAIN:
        path = mountpoint / name
        assert path.read_bytes() == (lower / name).read_bytes() + b"more"
        assert path.stat().st_ino == listed[name] == numbers[name]


def test_pages_from_before_the_copy_up_are_not_shown_again(lower: Path, tmp_path: Path) -> None:
    """They were read from the lower file; the copy is written past them, in passthrough."""
    with mounted(Device, tmp_path / "one", lower) as subject:
        path = subject.mountpoint / "edge"
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
            assert view[:] == (lower / "edge").read_bytes()
        with open(path, "r+b", buffering=0) as writer:
            writer.write(b"NEW")
            with (
                open(path, "rb") as other,
                mmap.mmap(other.fileno(), 0, prot=mmap.PROT_READ) as view,
            ):
                assert view[:3] == b"NEW"
        # Python's from now on, by a name that the lane does not give.
        os.link(path, subject.mountpoint / "again")
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
            assert view[:] == b"NEW" + (lower / "edge").read_bytes()[3:]


def test_a_copy_is_removed_and_replaced_as_python_does(lower: Path, tmp_path: Path) -> None:
    results = []
    for kind in (Device, Plain):
        with mounted(kind, tmp_path / kind.name, lower) as subject:
            top = subject.mountpoint
            for name in PLAIN:
                WAYS["append"](top / name)
            ino = (top / "owned").stat().st_ino
            with open(top / "owned", "rb") as held:
                (top / "fresh").write_bytes(b"fresh")
                (top / "fresh").rename(top / "owned")
                status = os.fstat(held.fileno())
                assert (status.st_ino, status.st_nlink) == (ino, 0)
                assert held.read() == (lower / "owned").read_bytes() + b"more"
            (top / "plain").unlink()
            (top / "empty").rename(top / "moved")
            (top / "edge").unlink()
            (top / "edge").write_bytes(b"again")
            (top / "owned").unlink()
            assert sorted(set(os.listdir(top)) & {*PLAIN, "moved"}) == ["edge", "moved"]
        results.append(_found(subject.upper, "."))
    assert stat.S_ISCHR((subject.upper / "owned").lstat().st_mode)
    assert results[0] == results[1]


def test_a_running_program_is_not_written_to(tmp_path: Path) -> None:
    """It is open, so its copy-up is Python's: ETXTBSY comes from the kernel."""
    lower = tmp_path / "programs"
    lower.mkdir()
    (lower / "sleep").write_bytes(Path("/bin/sleep").read_bytes())
    (lower / "sleep").chmod(0o755)
    with mounted(Device, tmp_path / "one", lower) as subject:
        path = subject.mountpoint / "sleep"
        pid = os.posix_spawn(path, ["sleep", "30"], {})
        try:
            with pytest.raises(OSError, match="Text file busy"):
                os.open(path, os.O_RDWR)
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        assert not (subject.upper / "sleep").exists()
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(b"x")
        assert (subject.upper / "sleep").read_bytes()[:1] == b"x"
