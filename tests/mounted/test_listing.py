"""Directories: what a listing shows, while it changes and when it is large."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounted.slots import KINDS, Slot
from tests.mounted.subject import SUBJECTS, Subject

_libc = ctypes.CDLL(None, use_errno=True)
_SYS_GETDENTS64 = 217

TYPES = {
    "file": 8, "full": 4, "empty": 4, "symlink": 10, "fifo": 1, "null": 2, "block": 6, "socket": 12,
}  # fmt: skip


def getdents(fd: int, size: int = 1024) -> list[tuple[bytes, int, int, int]]:
    """(name, ino, type, offset) rows of one getdents64(2)."""
    buffer = ctypes.create_string_buffer(size)
    count = _libc.syscall(_SYS_GETDENTS64, fd, buffer, size)
    if count < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    rows = []
    place = 0
    while place < count:
        ino, offset, length, kind = struct.unpack_from("<QqHB", buffer.raw, place)
        name = buffer.raw[place + 19 : place + length].split(b"\0", 1)[0]
        rows.append((name, ino, kind, offset))
        place += length
    return rows


def rows(fd: int, size: int = 1024) -> Iterator[tuple[bytes, int, int, int]]:
    while found := getdents(fd, size):
        yield from found


@pytest.fixture
def opened() -> Iterator[Callable[[Path], int]]:
    fds = []

    def open_directory(path: Path) -> int:
        fds.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
        return fds[-1]

    yield open_directory
    for fd in fds:
        os.close(fd)


def test_types_and_dots(slot: Slot, opened: Callable[[Path], int]) -> None:
    found = {name: (ino, kind) for name, ino, kind, _ in rows(opened(slot.dir))}
    assert found[b"."] == (os.lstat(slot.dir).st_ino, 4)
    assert found[b".."] == (os.lstat(slot.dir.parent).st_ino, 4)
    for kind in KINDS:
        assert found[kind.encode()] == (os.lstat(slot / kind).st_ino, TYPES[kind])
    assert len(found) == len(os.listdir(slot.dir)) + 2


def fill(home: Path, count: int) -> set[bytes]:
    for number in range(count):
        (home / f"n{number:04}").touch()
    return {b"n%04d" % number for number in range(count)}


@pytest.mark.parametrize("home", ["full", "empty"])
def test_seeking_goes_back_to_the_same_row(
    slot: Slot, opened: Callable[[Path], int], home: str
) -> None:
    fill(slot / home, 150)
    fd = opened(slot / home)
    whole = list(rows(fd))
    assert len({name for name, *_ in whole}) == len(whole) == len(os.listdir(slot / home)) + 2
    for place in (0, 1, 2, 40, 149):
        os.lseek(fd, whole[place][3], os.SEEK_SET)
        assert getdents(fd)[0][0] == whole[place + 1][0] if place + 1 < len(whole) else True
    os.lseek(fd, 0, os.SEEK_SET)
    assert [name for name, *_ in rows(fd)] == [name for name, *_ in whole]
    assert getdents(fd) == []


def test_a_listing_under_way_misses_nothing_and_repeats_nothing(
    slot: Slot, opened: Callable[[Path], int]
) -> None:
    stays = fill(slot / "full", 300) | {b"inner"}
    fd = opened(slot / "full")
    seen: list[bytes] = []
    number = 0
    gone: set[bytes] = set()
    while found := getdents(fd, 700):
        seen += [name for name, *_ in found]
        (slot / "full" / f"added{number:04}").touch()
        victim = f"n{(number * 7) % 300:04}"
        if (slot / "full" / victim).exists():
            os.unlink(slot / "full" / victim)
            gone.add(victim.encode())
        number += 1
    assert number > 10
    assert len(seen) == len(set(seen))
    assert (stays - gone) <= set(seen)


def test_rewinding_shows_what_is_there_now(slot: Slot, opened: Callable[[Path], int]) -> None:
    fd = opened(slot / "full")
    list(rows(fd))
    (slot / "full" / "later").touch()
    os.unlink(slot / "full" / "inner")
    os.lseek(fd, 0, os.SEEK_SET)
    assert {name for name, *_ in rows(fd)} == {b".", b"..", b"later"}
    os.unlink(slot / "full" / "later")
    assert os.listdir(slot / "full") == []


def test_renaming_while_listing_comes_to_an_end(slot: Slot, opened: Callable[[Path], int]) -> None:
    """A name that moves may show under both or neither of its names, but not for ever."""
    fill(slot / "empty", 200)
    fd = opened(slot / "empty")
    steps = 0
    for name, _, kind, _ in rows(fd):
        if kind == 8:
            os.rename(slot / "empty" / os.fsdecode(name), slot / "empty" / f"moved{steps}")
            steps += 1
        assert steps <= 600
    assert len(os.listdir(slot / "empty")) == 200


def test_emptying_a_directory_while_listing_it(slot: Slot, opened: Callable[[Path], int]) -> None:
    fill(slot / "full", 400)
    fd = opened(slot / "full")
    for name, _, kind, _ in rows(fd):
        if kind == 8:
            os.unlink(slot / "full" / os.fsdecode(name))
    assert os.listdir(slot / "full") == []
    os.rmdir(slot / "full")


def test_new_names_show_at_once(slot: Slot) -> None:
    for number in range(30):
        (slot / "empty" / str(number)).touch()
        assert len(os.listdir(slot / "empty")) == number + 1
    for number in range(30):
        os.unlink(slot / "empty" / str(number))
        assert len(os.listdir(slot / "empty")) == 29 - number


COUNT = 100_000


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SUBJECTS))
def test_a_hundred_thousand_entries(name: str, mounted: Callable[..., Subject]) -> None:
    """Half below, half above; the second half must not cost more than the first."""

    def prepare(subject: Subject) -> None:
        for layer, first in ((subject.lower, 0), (subject.upper, COUNT // 2)):
            (layer / "big").mkdir()
            home = os.open(layer / "big", os.O_RDONLY)
            for number in range(first, first + COUNT // 2):
                os.mknod(f"name{number}", dir_fd=home)
            os.close(home)

    subject = mounted(SUBJECTS[name], prepare)
    big = subject.mountpoint / "big"
    names = os.listdir(big)
    assert len(names) == len(set(names)) == COUNT
    spent = []
    for half in (names[:2000], names[-2000:]):
        began = time.monotonic()
        for entry in half:
            os.lstat(big / entry)
        spent.append(time.monotonic() - began)
    assert spent[1] < 10 * spent[0] + 0.5
    for entry in names[::1000]:
        os.unlink(big / entry)
    (big / "one more").touch()
    left = os.listdir(big)
    assert len(left) == len(set(left)) == COUNT - 100 + 1
