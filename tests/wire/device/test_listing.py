"""Directories that are read in steps while names in them come and go: what stays shows, and shows once."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from overlayfs_py.layers.tree import DT_REG
from overlayfs_py.layers.tree import Row as LayerRow
from overlayfs_py.mount import build
from overlayfs_py.options import MountOptions
from overlayfs_py.overlay.cookies import COOKIE_MIN, cookie, in_order
from overlayfs_py.wire.device.protocol import MKNOD_IN, READ_IN, RENAME2_IN, Opcode
from overlayfs_py.wire.lane import compiled
from tests.wire.device.client import ROOT, Client, Row
from tests.wire.device.line import Line

STAYING = {b"stays-%d" % number for number in range(150)}
LEAVING = {b"leaves-%d" % number for number in range(150)}
LANED = [
    pytest.param(
        True, marks=pytest.mark.skipif(compiled() is None, reason="no compiled lane"), id="lane"
    ),
    pytest.param(False, id="python"),
]


@contextmanager
def served(tmp_path: Path, *, laned: bool, plus: bool) -> Iterator[tuple[Client, Line, int]]:
    """A union of two lower layers and an upper, and the node of its directory `d`."""
    options = MountOptions(fsync=False)
    for name in ("top", "base", "upper", "work"):
        (tmp_path / name).mkdir()
    for number, file in enumerate(sorted(STAYING | LEAVING)):
        below = tmp_path / ("top" if number % 3 else "base") / "d"
        below.mkdir(exist_ok=True)
        (below / os.fsdecode(file)).touch()
    options.lowerdirs = [os.fsencode(tmp_path / name) for name in ("top", "base")]
    options.upperdir, options.workdir = (os.fsencode(tmp_path / n) for n in ("upper", "work"))
    overlay = build(options)
    line = Line(overlay, laned=laned)
    try:
        client = Client(line, plus=plus)
        found = client.lookup(ROOT, b"d")
        assert not isinstance(found, int)
        yield client, line, found.id
    finally:
        line.close()
        overlay.close()


def step(client: Client, node: int, offset: int, size: int, plus: bool) -> list[Row]:
    opcode = Opcode.READDIRPLUS if plus else Opcode.READDIR
    reply = client.ask(opcode, node, READ_IN.pack(0, offset, size, 0, 0, 0, 0))
    assert not reply.error
    rows: list[Row] = []
    client._unpack(reply.body, rows, {})
    return rows


def change(client: Client, node: int, chance: random.Random, there: set[bytes]) -> None:
    """Make a name, remove one or rename one of those that do not stay."""
    kind = chance.randrange(3)
    new = b"comes-%d" % chance.randrange(1 << 32)
    old = chance.choice(sorted(there)) if there else b""
    if kind == 0 or not old:
        body = MKNOD_IN.pack(0o100644, 0, 0, 0) + new + b"\0"
        assert not client.ask(Opcode.MKNOD, node, body).error
        there.add(new)
    elif kind == 1:
        assert not client.ask(Opcode.UNLINK, node, old + b"\0").error
        there.remove(old)
    else:
        body = RENAME2_IN.pack(node, 0, 0) + old + b"\0" + new + b"\0"
        assert not client.ask(Opcode.RENAME2, node, body).error
        there.remove(old)
        there.add(new)


@pytest.mark.parametrize("laned", LANED)
@pytest.mark.parametrize("plus", [True, False])
def test_names_that_stay_show_once_while_others_come_and_go(
    laned: bool, plus: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    chance = random.Random(int(request.config.getoption("hypothesis_seed")))
    with served(tmp_path, laned=laned, plus=plus) as (client, line, node):
        there = set(LEAVING)
        for reading in range(6):
            seen: list[bytes] = []
            offset = 0
            while rows := step(client, node, offset, chance.randrange(400, 3000), plus):
                seen += [row.name for row in rows]
                offset = rows[-1].offset
                # At first nothing: so the lane lists until something changes.
                for _ in range(chance.randrange(4) if reading else 0):
                    change(client, node, chance, there)
                if chance.random() < 0.3 and line.dispatch.listed is not None:
                    line.dispatch.listed._by_id.clear()
            assert len(seen) == len(set(seen))
            assert STAYING | {b".", b".."} <= set(seen)
        # And when nothing changes any more, all.
        seen = [row.name for row in step(client, node, 0, 1 << 20, plus)]
        assert sorted(seen) == sorted(STAYING | there | {b".", b".."})


@pytest.mark.parametrize("laned", LANED)
def test_many_read_one_directory_at_once(laned: bool, tmp_path: Path) -> None:
    with served(tmp_path, laned=laned, plus=False) as (client, _, node):
        readers: list[list[Row]] = [[] for _ in range(20)]
        ended = 0
        while ended < len(readers):
            ended = 0
            for rows in readers:
                more = step(client, node, rows[-1].offset if rows else 0, 500, False)
                rows += more
                ended += not more
        assert all(rows == readers[0] for rows in readers)
        assert {row.name for row in readers[0]} == STAYING | LEAVING | {b".", b".."}


@pytest.mark.parametrize("laned", LANED)
def test_more_directories_than_are_remembered_are_read_at_once(laned: bool, tmp_path: Path) -> None:
    with served(tmp_path, laned=laned, plus=False) as (client, _, _node):
        nodes = []
        for number in range(40):
            body = (0o755).to_bytes(8, "little") + b"d%d\0" % number
            assert not client.ask(Opcode.MKDIR, ROOT, body).error
            found = client.lookup(ROOT, b"d%d" % number)
            assert not isinstance(found, int)
            nodes.append(found.id)
            for name in range(30):
                body = MKNOD_IN.pack(0o100644, 0, 0, 0) + b"file-%d\0" % name
                assert not client.ask(Opcode.MKNOD, found.id, body).error
        seen: dict[int, list[Row]] = {node: [] for node in nodes}
        while True:
            more = 0
            for node, rows in seen.items():
                got = step(client, node, rows[-1].offset if rows else 0, 400, False)
                rows += got
                more += bool(got)
            if not more:
                break
        names = sorted([b".", b"..", *(b"file-%d" % name for name in range(30))])
        assert all(sorted(row.name for row in rows) == names for rows in seen.values())


@pytest.mark.skipif(compiled() is None, reason="no compiled lane")
def test_who_looks_at_no_files_is_told_of_directories_only(tmp_path: Path) -> None:
    options = MountOptions()
    for number in range(6):
        (tmp_path / "lower" / f"d{number}" / "below").mkdir(parents=True)
        for file in ("f1", "f2", "f3"):
            (tmp_path / "lower" / f"d{number}" / file).touch()
    (tmp_path / "empty").mkdir()
    options.lowerdirs = [os.fsencode(tmp_path / name) for name in ("empty", "lower")]
    overlay = build(options)
    line = Line(overlay, laned=True)
    try:
        client = Client(line)
        client.listing(ROOT)  # by Python, who then publishes it
        told = [_told(client, b"d%d" % number) for number in range(3)]
        assert len(told[0]) == 3
        assert b"below" in told[0]
        assert told[1:] == [{b"below"}] * 2
        client.lookup(_node(client, b"d2"), b"f1")
        told = [_told(client, b"d%d" % number) for number in range(3, 6)]
        assert told == [{b"below", b"f1", b"f2", b"f3"}] * 3
    finally:
        line.close()
        overlay.close()


def _told(client: Client, name: bytes) -> set[bytes]:
    """The names of a directory of the root that came with an entry."""
    listed = client.listing(_node(client, name))
    assert not isinstance(listed, int)
    return set(listed[1])


def _node(client: Client, name: bytes) -> int:
    found = client.lookup(ROOT, name)
    assert not isinstance(found, int)
    return found.id


def rows_of(names: list[bytes]) -> list[tuple[LayerRow, int]]:
    return [(LayerRow(name, DT_REG, number + 2), 0) for number, name in enumerate(names)]


def test_names_with_one_cookie_have_an_order_all_the_same() -> None:
    names = [b"c", b"a", b"b"]
    rows, cookies = in_order(rows_of(names), lambda name: 7)
    assert [row.name for row, _ in rows] == [b"a", b"b", b"c"]
    assert cookies == [7, 8, 9]


def test_cookies_are_offsets() -> None:
    for number in range(1000):
        name = b"name-%d" % number
        assert COOKIE_MIN <= cookie(name) < 1 << 63
        lane = compiled()
        assert lane is None or COOKIE_MIN <= lane.cookie(name) < 1 << 63
