"""A tree that is not in memory becomes the same index, byte for byte, as one that is."""

from __future__ import annotations

import errno
import io
import os
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from layerstore.errors import SourceInvalid
from layerstore.index.spill import Spill
from layerstore.index.tree import directory
from layerstore.index.writer import write_index
from layerstore.objects import Objects, Staging
from layerstore.oci.layer import LayerBuilder
from layerstore.oci.tar import TarReader
from layerstore.spool import Sorted, Spool
from tests.layerstore.archives import Item, folder, hard_link, symlink, tar_of
from tests.layerstore.test_tar import SPARSE, pax


def outcome(tmp_path: Path, archive: bytes, memory_max: int | None) -> bytes | str:
    """The index of a layer, or why there is none."""
    places = [tmp_path / name for name in ("objects", "staging", "scratch")]
    for place in places:
        place.mkdir(exist_ok=True)
    for old in places[1].iterdir():
        old.unlink()
    objects, staging, scratch = map(bytes, places)
    builder = LayerBuilder(
        Staging(Objects(objects), staging),
        "layer",
        scratch=scratch if memory_max is not None else None,
        memory_max=memory_max,
    )
    with closing(builder):
        try:
            tree = builder.apply_all(TarReader(io.BytesIO(archive), "layer"))
        except SourceInvalid as error:
            return str(error)
        file = io.BytesIO()
        write_index(tree, file, scratch)
    assert not list(places[2].iterdir())
    return file.getvalue()


NAMES = st.lists(st.sampled_from("aaabbcs"), min_size=1, max_size=4).map("/".join)
MARKED = st.tuples(NAMES, st.sampled_from([".wh.a", ".wh.b", ".wh.s", ".wh..wh..opq"])).map(
    "/".join
)
XATTRS = st.sampled_from([{}, {"user.x": "1"}, {"security.capability": "c", "user.y": "2" * 99}])
ENTRIES = st.one_of(
    st.builds(Item, NAMES, st.sampled_from([b"", b"1", b"2" * 600]), xattrs=XATTRS),
    st.builds(folder, NAMES, st.sampled_from([0o700, 0o755]), xattrs=XATTRS),
    st.builds(folder, NAMES),
    st.builds(symlink, st.sampled_from(["s", "a/s", "b"]), NAMES),
    st.builds(hard_link, NAMES, NAMES),
    st.builds(Item, MARKED),
    st.builds(Item, st.sampled_from([".wh.a", ".wh.c", ".wh..wh..opq"])),
)


@settings(
    deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(ENTRIES, min_size=2, max_size=14), st.sampled_from([0, 1500, 4000]))
@example([folder("a"), Item("a/b"), hard_link("a/c", "a/b"), Item("a/b", b"1")], 0)
@example([folder("a"), Item("a/.wh.b"), Item("a", b"1"), folder("a"), Item("a/b")], 0)
@example([folder("a"), Item(".wh.a"), Item("a/.wh.b"), folder("a/b"), Item("a/.wh.b")], 0)
@example([Item("a/b"), symlink("s", "a"), Item("s/b", b"2"), folder("s/c", 0o700)], 0)
@example([folder("a"), folder("b"), Item("a/c"), symlink("a", "b"), Item("a/c", b"1")], 0)
def test_stored_or_not(tmp_path: Path, items: list[Item], memory_max: int) -> None:
    archive = tar_of(items)
    assert outcome(tmp_path, archive, memory_max) == outcome(tmp_path, archive, None)


def test_sparse_files_old_times_and_devices(tmp_path: Path) -> None:
    hole = pax({b"GNU.sparse.map": b"0,0", b"GNU.sparse.size": b"%d" % (1 << 50)})
    old = pax({b"mtime": b"-%d.5" % (1 << 62)})
    devices = tar_of([Item("d", None, b"3", device=(4095, 1048575)), Item("p", None, b"6")])
    data = {b"GNU.sparse.map": b"0,%d" % len(SPARSE), b"GNU.sparse.size": b"%d" % len(SPARSE)}
    for archive in (hole, old, devices, pax(data, data=SPARSE)):
        found = outcome(tmp_path, archive, 0)
        assert isinstance(found, bytes)
        assert found == outcome(tmp_path, archive, None)


def test_a_full_disk_is_said_so(tmp_path: Path) -> None:
    """SQLite has its own words for it, and `room` knows the system's."""
    spill = Spill(bytes(tmp_path))
    spill._db.execute("PRAGMA max_page_count = 8")
    root = directory()
    assert root.children is not None
    for number in range(5000):
        root.children[b"%d" % number] = directory()
    with pytest.raises(OSError, match="No space left") as caught:
        spill.store(root, [])
    assert caught.value.errno == errno.ENOSPC
    spill.close()
    assert not list(tmp_path.iterdir())


@given(st.lists(st.binary(min_size=3, max_size=3)), st.integers(1, 5))
def test_sorted(records: list[bytes], run_max: int) -> None:
    kept = Sorted(3, run_max=run_max)
    for position, record in enumerate(records):
        kept.add(record)
        if position % 4 == 0:
            assert list(kept) == sorted(records[: position + 1])
    assert list(kept) == list(kept) == sorted(records)
    assert len(kept) == len(records)
    kept.close()


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, 5 << 19])
def test_spool(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    with Spool(bytes(tmp_path)) as spool:
        for at in range(0, size, 700_001):
            spool.write(data[at : at + 700_001])
        assert spool.rewound().read() == spool.rewound().read() == data
        assert not list(tmp_path.iterdir())
