"""Tables of contents: whatever files are there, the tar comes out bit for bit."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from layerstore.objects import Objects
from layerstore.oci.assembly import Assembled, Span, merge
from layerstore.oci.estargz import Members
from layerstore.oci.limits import NO_LIMITS
from layerstore.oci.toc import Reader, Table
from layerstore.registry.parts import find_reader
from tests.layerstore.archives import Item, digest_of, folder, hard_link, symlink, tar_of
from tests.layerstore.chunked import estargz, plain, trimmed, zstd_chunked

Writer = Callable[..., tuple[bytes, dict[str, str]]]
WRITERS: list[Any] = [pytest.param(zstd_chunked, id="zstd"), pytest.param(estargz, id="estargz")]


class InBlob:
    """Ranges of a blob that is in memory; only those that were asked for."""

    def __init__(self, blob: bytes, spans: list[Span]) -> None:
        self._blob = blob
        self._spans = spans

    def read_at(self, start: int, size: int) -> bytes:
        assert any(begin <= start < end for begin, end in self._spans)
        end = min(end for begin, end in self._spans if start < end)
        return self._blob[start : min(start + size, end, start + 10_000)]

    def give_up(self) -> None:
        """Nobody waits."""


def table_of(blob: bytes, annotations: dict[str, str]) -> Table:
    """Read the table of a blob."""
    reader = find_reader({"size": len(blob), "annotations": annotations}, "blob")
    assert reader is not None
    return drive(reader, blob)


def drive(reader: Reader, blob: bytes) -> Table:
    """Give a reader what it asks for."""
    spans = next(reader)
    while True:
        for start, end in spans:
            assert 0 <= start < end <= len(blob)
        try:
            spans = reader.send([blob[start:end] for start, end in spans])
        except StopIteration as end:
            table: Table = end.value
            return table


def read_all(source: Assembled) -> bytes:
    """To its end."""
    pieces = []
    while piece := source.read(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


names = st.text("abcdefgh\u00e9", min_size=1, max_size=120)
contents = st.binary(max_size=200) | st.integers(0, 150_000).map(
    lambda size: (b"%d" % size * size)[:size]
)
entries = st.one_of(
    st.builds(
        Item, names, contents, mtime=st.sampled_from([0, 7, 1.5]), uid=st.sampled_from([0, 1 << 22])
    ),
    st.builds(folder, names),
    st.builds(symlink, names, names),
    st.builds(hard_link, names, names),
)


@pytest.mark.parametrize("write", WRITERS)
@given(data=st.data(), items=st.lists(entries, max_size=12))
def test_any_layer_with_any_files_there(
    write: Writer, data: st.DataObject, items: list[Item]
) -> None:
    tar = tar_of(items)
    if data.draw(st.booleans(), "trimmed"):
        tar = trimmed(tar)
    sized = [item for item in items if item.data and item.kind == tarfile.REGTYPE]
    assume(write is zstd_chunked or sized)
    options = {}
    if write is zstd_chunked and data.draw(st.booleans(), "tar-split"):
        options = {"split": True}
    blob, annotations = write(tar, **options)
    if write is estargz:
        tar = plain(blob)
    there = {item.data for item in items if item.data and data.draw(st.booleans(), item.name)}
    gap_max = data.draw(st.sampled_from([0, 50, 512, 65536]), "gap")
    with tempfile.TemporaryDirectory() as place:
        objects = Objects(os.fsencode(place))
        for content in there:
            path = Path(os.fsdecode(objects.path(digest_of(content))))
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        table = table_of(blob, annotations)
        assert [one.size for one in table.payloads] == [len(item.data or b"") for item in sized]
        plans = [table.plan(lambda one: objects.has(one.digest), gap_max)]
        if table.split_span is not None:
            start, end = table.split_span
            plans.append(
                table.split_plan(blob[start:end], lambda one: objects.has(one.digest), gap_max)
            )
        for plan in plans:
            fetched = InBlob(blob, plan.spans)
            assembled = Assembled(plan.pieces(), fetched, objects, len(blob), "blob", NO_LIMITS)
            assert read_all(assembled) == tar
            if gap_max == 0 and write is zstd_chunked:
                for one in table.payloads:
                    inside = any(start <= one.start < end for start, end in plan.spans)
                    assert not (inside and objects.has(one.digest))


def test_what_is_near_is_fetched_in_one() -> None:
    spans = [(0, 10), (12, 20), (12, 15), (20, 20), (30, 40), (200, 201)]
    assert merge(spans, 0) == [(0, 10), (12, 20), (30, 40), (200, 201)]
    assert merge(spans, 10) == [(0, 40), (200, 201)]
    assert merge([], 10) == []


# What containerd's own writer (ctr-remote 0.12, chunks of 4,096 bytes) made of a layer with long names and
# links, owners that ustar has no room for, times before 1970 and after 2242, names that are not ASCII.
BLOB = Path(__file__).with_name("estargz.blob")
DIGEST = "sha256:b74b8f9b1be136b0a0f40bdc4bae96f100454422967c2dd7769fb120d1f11ac0"


@pytest.mark.parametrize("there", [set(range(12)), set(), {0, 3, 7}, {1, 2, 5, 9, 10, 11}])
def test_what_containerd_writes(there: set[int], tmp_path: Path) -> None:
    blob = BLOB.read_bytes()
    tar = plain(blob)
    table = table_of(blob, {"containerd.io/snapshot/stargz/toc.digest": DIGEST})
    assert isinstance(table, Members)
    assert table.form == "pax"
    objects = Objects(os.fsencode(tmp_path))
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        contents = [archive.extractfile(one).read() for one in archive if one.isreg() and one.size]  # type: ignore[union-attr]
    assert len(table.payloads) + 1 == len(contents)  # the table itself is another
    digests = set()
    for number in there:
        digests.add(digest := digest_of(contents[number]))
        path = Path(os.fsdecode(objects.path(digest)))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(contents[number])
    plan = table.plan(lambda one: one.digest in digests, 0)
    assembled = Assembled(
        plan.pieces(), InBlob(blob, plan.spans), objects, len(blob), "blob", NO_LIMITS
    )
    assert read_all(assembled) == tar
    if len(there) == 12:
        # The start, and beside each other the members that a pipe and a whiteout follow in.
        assert len(plan.spans) == 2
