"""Copies that the lane makes are those that Python makes, on disk and for callers, now and later."""

from __future__ import annotations

import errno
import os
import signal
import stat
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from overlayfs_py import syscalls
from overlayfs_py.wire.device import protocol
from overlayfs_py.wire.device.protocol import Opcode
from overlayfs_py.wire.lane import compiled
from tests.model.mounted import mount, unmount
from tests.wire.device import copies
from tests.wire.device.client import Client
from tests.wire.device.copies import (
    CHANGES,
    PLAIN,
    Place,
    change,
    found,
    served,
    union,
    walk_to,
)
from tests.wire.device.stops import Ended, Stops, each

pytestmark = pytest.mark.skipif(compiled() is None, reason="no compiled lane")

OTHERS = ("over", "xattr", "setuid", "linked", "sparse", "sub/plain")
KINDS = ("directory", "image")


@pytest.fixture(scope="module", params=KINDS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the lower files are, as a directory or as an image."""
    top = tmp_path_factory.mktemp("copied")
    lower = top / "lower"
    lower.mkdir()
    copies.lay(lower)
    if request.param == "directory":
        return lower
    copies.import_image(lower, top / "store")
    return top / "store"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    lower = tmp_path / "lower"
    lower.mkdir()
    copies.lay(lower)
    return lower


def _attributes(packed: bytes, *, times: bool) -> list[int]:
    """Of an AttrOut, without what the clock decides."""
    values = list(struct.unpack_from("<QQQqqqIIIIIIIIII", packed, 16))
    for index in (3, 4, 5, 6, 7, 8) if not times else (5, 8):
        values[index] = 0
    return values


@pytest.mark.parametrize("way", CHANGES)
@pytest.mark.parametrize("name", [*PLAIN, *OTHERS])
def test_a_change_leaves_what_python_leaves(
    source: Path, name: str, way: str, tmp_path: Path
) -> None:
    image = source.name == "store"
    if image and name == "sparse":
        pytest.skip("no image has it")
    truncates = way in ("shorten", "empty", "lengthen")
    answers, uppers = [], []
    for laned in (True, False):
        place = copies.place(tmp_path, f"laned-{laned}")
        with union(source, place) as overlay, served(overlay, laned=laned) as (line, client):
            told = walk_to(client, name)
            body, by_lane = change(line, client, told.id, CHANGES[way])
            answers.append(_attributes(body, times=not truncates))
            assert answers[-1][0] == told.attributes[0], "the number stays"
            # Of an image the one name of a linked file is left, and zeros are no hole.
            plain = name in PLAIN or (image and name == "linked")
            shortened = name == "over" and way in ("shorten", "empty")
            assert by_lane == (laned and (plain or shortened))
            uppers.append(found(place.upper, times=not truncates))
            assert client.getattr(told.id)[:2] == tuple(answers[-1][:2])  # type: ignore[index]
        assert os.listdir(place.work / "work") == []
    assert answers[0] == answers[1]
    assert uppers[0] == uppers[1]
    assert {"", name} <= set(uppers[0]) | {""}


@pytest.mark.parametrize("name", PLAIN)
def test_whoever_looks_later_sees_the_same_file(source: Path, name: str, tmp_path: Path) -> None:
    """After the lane has forgotten it, in listings, handed over to Python, and in another mount."""
    place = copies.place(tmp_path, "one")
    with union(source, place) as overlay, served(overlay, laned=True) as (line, client):
        told = walk_to(client, name)
        body, by_lane = change(line, client, told.id, CHANGES["chmod"])
        assert by_lane
        changed = struct.unpack_from("<QQQqqqIIIIIIIIII", body, 16)
        again = client.lookup(1, name.encode())
        assert not isinstance(again, int)
        assert again.id == told.id
        assert again.attributes == changed
        for plus in (True, False):
            listed = Client(line, plus=plus)
            listed._unique = client._unique
            rows, _ = listed.listing(1)  # type: ignore[misc]
            client._unique = listed._unique
            client.told.update({id: client.told.get(id, 0) + n for id, n in listed.told.items()})
            assert {row.name: row.ino for row in rows}[name.encode()] == told.attributes[0]
        client.forget_all()
        assert client._line.laned.lane.counts()[0] == 0  # type: ignore[union-attr]
        relooked = client.lookup(1, name.encode())
        assert not isinstance(relooked, int)
        assert relooked.attributes == changed
    with union(source, place) as overlay, served(overlay, laned=True) as (_, client):
        assert walk_to(client, name).attributes == changed


def test_python_takes_a_copy_over(source: Path, tmp_path: Path) -> None:
    """By a verb that is none of the lane's: the number, the count and the mark are the same."""
    place = copies.place(tmp_path, "one")
    with union(source, place) as overlay, served(overlay, laned=True) as (line, client):
        assert line.laned is not None
        told = walk_to(client, "plain")
        assert change(line, client, told.id, CHANGES["chmod"])[1]
        set = protocol.SETXATTR_EXT_IN.pack(1, 0, 0, 0) + b"user.b\0" + b"2"
        assert not client.ask(Opcode.SETXATTR, told.id, set).error
        record = line.dispatch.record(told.id)
        assert record is not None
        assert record.node.upper
        assert record.node.ino == told.attributes[0]
        assert record.lookups == 1
        assert not client.ask(Opcode.UNLINK, 1, b"plain\0").error
        assert stat.S_ISCHR((place.upper / "plain").lstat().st_mode), "a whiteout"
        gone = client.getattr(told.id)
        assert not isinstance(gone, int)
        assert (gone[0], gone[10]) == (told.attributes[0], 0)


def test_a_copy_that_is_replaced_keeps_its_number(source: Path, tmp_path: Path) -> None:
    place = copies.place(tmp_path, "one")
    (place.upper / "new").write_bytes(b"new")
    with union(source, place) as overlay, served(overlay, laned=True) as (line, client):
        assert line.laned is not None
        told, new = walk_to(client, "plain"), walk_to(client, "new")
        assert change(line, client, told.id, CHANGES["chmod"])[1]
        before = copies.by_lane(line, client)
        body = protocol.RENAME2_IN.pack(1, 0, 0) + b"new\0plain\0"
        assert not client.ask(Opcode.RENAME2, 1, body).error
        assert copies.by_lane(line, client) == before + 1
        for _ in range(2):
            gone = client.getattr(told.id)
            assert not isinstance(gone, int)
            assert (gone[0], gone[9] & 0o777, gone[10]) == (told.attributes[0], 0o604, 0)
            # Then Python takes it over.
            client.xattrs(told.id)
        assert (place.upper / "plain").read_bytes() == b"new"
        assert walk_to(client, "plain").id == new.id
        assert not client.ask(Opcode.UNLINK, 1, b"plain\0").error
        assert client.lookup(1, b"plain") == 2, "the lower file does not come back"


def test_an_open_file_goes_over_to_the_copy(source: Path, tmp_path: Path) -> None:
    """What was opened before shows what is there now, so the copy-up is Python's."""
    place = copies.place(tmp_path, "one")
    with union(source, place) as overlay, served(overlay, laned=True) as (line, client):
        told = walk_to(client, "plain")
        opened = client.ask(Opcode.OPEN, told.id, protocol.OPEN_IN.pack(0, 0))
        (file,) = struct.unpack_from("<Q", opened.body)
        assert not change(line, client, told.id, CHANGES["shorten"])[1]
        read = protocol.READ_IN.pack(file, 0, 4096, 0, 0, 0, 0)
        assert len(client.ask(Opcode.READ, told.id, read).body) == 10


@pytest.mark.parametrize("chosen", [{"metacopy": True}, {"noacl": True}, {"fsync": True}], ids=str)
def test_what_the_lane_does_not_know_is_pythons(
    source: Path, chosen: dict[str, bool], tmp_path: Path
) -> None:
    """Only the data of a file, and nothing else, must be on the disk before the copy is seen."""
    uppers = []
    for laned in (True, False):
        place = copies.place(tmp_path, f"laned-{laned}")
        with union(source, place, **chosen) as overlay:
            syncs = overlay.state.syncs
            if chosen == {"fsync": True} and not syncs:
                pytest.skip("nothing is synced on this filesystem")
            with served(overlay, laned=laned) as (line, client):
                for name, way in (("plain", "chmod"), ("owned", "shorten"), ("edge", "empty")):
                    told = walk_to(client, name)
                    _, by_lane = change(line, client, told.id, CHANGES[way])
                    assert by_lane == (laned and chosen == {"fsync": True} and way == "empty")
            uppers.append(found(place.upper, times=False))
    assert uppers[0] == uppers[1]


def test_a_layer_whose_handles_tell_no_number_is_pythons(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = copies.place(tmp_path, "one")
    with union(directory, place) as overlay:
        monkeypatch.setattr(type(overlay.state), "origin_ino", lambda self, raw: None)
        assert overlay.plain_copies is not None
        assert overlay.plain_copies.layers == []
        with served(overlay, laned=True) as (line, client):
            assert not change(line, client, walk_to(client, "plain").id, CHANGES["chmod"])[1]


@pytest.mark.parametrize("cached", [True, False])
def test_many_bytes_that_must_be_waited_for_are_pythons(
    directory: Path, cached: bool, tmp_path: Path
) -> None:
    place = copies.place(tmp_path, "one")
    edge = os.open(directory / "edge", os.O_RDONLY)
    os.fsync(edge)
    if not cached:
        os.posix_fadvise(edge, 0, 0, os.POSIX_FADV_DONTNEED)
    in_memory = syscalls.filesystem_type(edge) == copies.TMPFS
    os.close(edge)
    with union(directory, place) as overlay, served(overlay, laned=True) as (line, client):
        told = walk_to(client, "edge")
        by_lane = change(line, client, told.id, CHANGES["chmod"])[1]
        assert by_lane == (cached or in_memory)
    assert (place.upper / "edge").read_bytes() == (directory / "edge").read_bytes()


def test_a_frozen_union_makes_no_copy(directory: Path, tmp_path: Path) -> None:
    place = copies.place(tmp_path, "one")
    with union(directory, place) as overlay, served(overlay, laned=True) as (line, client):
        assert line.laned is not None
        told = walk_to(client, "plain")
        line.laned.lane.hold(True)
        assert not change(line, client, told.id, CHANGES["chmod"])[1]


def test_a_copy_needs_the_directory_marked_first(directory: Path, tmp_path: Path) -> None:
    """The mark is Python's to make, and what it knows of the directory says so."""
    place = copies.place(tmp_path, "one")
    with union(directory, place) as overlay, served(overlay, laned=True) as (line, client):
        told = walk_to(client, "plain")
        assert not overlay.root.impure
        assert change(line, client, told.id, CHANGES["chmod"])[1]
        assert overlay.root.impure
        assert os.getxattr(place.upper, overlay.state.marks.impure) == b"y"


# What goes wrong in the middle


def one_change(
    stopping: Callable[[bool], None], source: str, upper: str, work: str, name: str, way: str
) -> None:
    """In a process of its own. What comes before the change is not stopped."""
    place = Place(Path(upper), Path(work))
    with (
        union(Path(source), place) as overlay,
        served(overlay, laned=True) as (line, client),
    ):
        told = walk_to(client, name)
        client.xattrs(1)
        stopping(True)
        change(line, client, told.id, CHANGES[way])
        stopping(False)


@pytest.fixture(scope="module")
def stops(tmp_path_factory: pytest.TempPathFactory) -> Stops:
    return Stops(tmp_path_factory.mktemp("stops"))


def _of_kernel(lower: Path, place: Place, *, times: bool = True) -> dict[str, dict[str, Any]]:
    """What the kernel's overlayfs shows of the union, with st_ino."""
    merged = place.upper.with_name("merged")
    merged.mkdir(exist_ok=True)
    options = f"lowerdir={lower},upperdir={place.upper},workdir={place.work},xino=auto"
    mount(b"overlay", os.fsencode(merged), b"overlay", 0, options.encode())
    try:
        seen = found(merged, times=times)
        for path in merged.rglob("*"):
            seen[str(path.relative_to(merged))]["ino"] = path.lstat().st_ino
    finally:
        unmount(os.fsencode(merged))
    # A crash before it is put back shows the directory changed.
    del seen["."]["times"]
    return seen


CASES = [("owned", "chmod"), ("plain", "shorten"), ("empty", "chown")]


class Case:
    """One change, made in any number of places."""

    def __init__(self, lower: Path, name: str, way: str, stops: Stops, tmp_path: Path) -> None:
        self.lower, self.name, self._way = lower, name, way
        self._stops = stops
        self._scratch = tmp_path
        self.times = way != "shorten"

    def made(self, calls: Sequence[int], number: int = 0) -> list[tuple[Place, Ended]]:
        """The change stopped at each of these calls of the lane, in a place each.

        Args:
            number: the errno with which the call fails, 0: the process ends there.
        """
        places = [copies.place(self._scratch, f"stopped{call}") for call in calls]
        arguments = [[str(self.lower), *map(str, place), self.name, self._way] for place in places]
        ended = self._stops.run(__name__, calls, arguments, number)
        return list(zip(places, ended, strict=True))


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, directory: Path, stops: Stops, tmp_path: Path) -> Case:
    name, way = request.param
    return Case(directory, name, way, stops, tmp_path)


@pytest.mark.mount
def test_a_crash_shows_the_old_file_or_the_new_one(case: Case, tmp_path: Path) -> None:
    """Before each system call of the lane in turn, as the kernel's overlayfs finds it."""
    old = copies.place(tmp_path, "old")
    ((new, done),) = case.made([0])
    assert done.status == 0
    assert done.calls > 10
    views = [_of_kernel(case.lower, place, times=case.times) for place in (old, new)]
    assert views[0] != views[1]
    for place, ended in case.made(range(1, done.calls + 1)):
        assert os.WTERMSIG(ended.status) == signal.SIGKILL
        assert {entry.name for entry in os.scandir(place.upper)} <= {case.name}
        assert _of_kernel(case.lower, place, times=case.times) in views, ended.calls
        with union(case.lower, place) as overlay, served(overlay, laned=True) as (_, client):
            number = walk_to(client, case.name).attributes[0]
        assert number == (case.lower / case.name).stat().st_ino
        assert os.listdir(place.work / "work") == []


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOENT, errno.EOPNOTSUPP], ids=os.strerror)
def test_a_call_that_fails_changes_nothing_that_shows(case: Case, number: int) -> None:
    """Python makes the change then, or another call serves as well."""
    ((new, done),) = case.made([0])
    assert done.status == 0
    expected = found(new.upper, times=case.times)
    put_back = expected["."].pop("times")
    of_directory = []
    stopped = case.made(range(1, done.calls + 1), number)
    for call, (place, ended) in enumerate(stopped, 1):
        assert ended.status == 0
        seen = found(place.upper, times=case.times)
        of_directory.append(seen["."].pop("times"))
        assert seen == expected, call
        assert os.listdir(place.work / "work") == []
    # All calls but the one that puts it back.
    assert of_directory.count(put_back) == done.calls - 1
    # Where the kernel links no descriptor, its path in /proc is linked.
    more = [ended for _, ended in stopped if ended.calls > done.calls]
    assert len(more) == (number == errno.ENOENT)


if __name__ == "__main__":
    each(sys.argv[1], one_change)
