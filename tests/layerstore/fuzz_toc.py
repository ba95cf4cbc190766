"""Damaged tables of contents, and blobs that have them, for the fuzzer: what is asked for is in the blob, what comes
of it is a tar or a `StoreError`."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layerstore.errors import ObjectMissing, StoreError
from layerstore.objects import Objects
from layerstore.oci.assembly import Assembled, Span
from layerstore.oci.limits import Limits
from layerstore.oci.toc import Payload, Table
from layerstore.registry.parts import find_reader
from tests.layerstore import mutate
from tests.layerstore.chunked import estargz, members, zstd_chunked

Writer = Callable[..., tuple[bytes, dict[str, str]]]

_NUMBERS: tuple[Any, ...] = (-1, 0, 1, 8, 100, 2**31, 2**63, 2**70, 1.5, None, "1", True, [])
_KEYS = ("offset", "endOffset", "size", "chunkOffset", "innerOffset", "mode", "uid", "devMajor")
_WORDS = ("digest", "type", "name", "linkName", "modtime", "xattrs", "userName")


def one(chance: random.Random, home: Path, limits: Limits) -> bytes:
    """Read a table that may be damaged, and put the tar together; returns it.

    Args:
        chance: decides everything.
        home: a directory; its objects are those that are there.
        limits: for the tar.

    Raises:
        StoreError: it cannot be read.
        AssertionError: something is asked for that is not in the blob.
    """
    write: Writer = chance.choice((zstd_chunked, zstd_chunked, estargz))
    tar = chance.choice([seed for seed in mutate.SEEDS if members(seed)])
    options = {"split": chance.random() < 0.5} if write is zstd_chunked else {}
    change = (lambda table: spoil(table, chance)) if chance.random() < 0.7 else None
    blob, annotations = write(tar, change=change, **options)
    if chance.random() < 0.4:
        damaged = bytearray(blob)
        chance.choice((mutate.cut, mutate.flip))(damaged, chance)
        blob = bytes(damaged)
    if chance.random() < 0.2:
        key = chance.choice(sorted(annotations))
        values: tuple[Any, ...] = (
            *("", "1:2:3:1", f"{2**62}:1:1:1", f"8:{len(blob)}:9:1", "x", 7, None),
            f"{chance.randrange(len(blob) + 9)}:{chance.randrange(len(blob) + 9)}:99:1",
        )
        annotations[key] = chance.choice(values)
    descriptor = json.loads(json.dumps({"size": len(blob), "annotations": annotations}))
    reader = find_reader(descriptor, "fuzzed")
    if reader is None:
        raise StoreError("fuzzed: has no table")
    fetched = _Blob(blob)
    table = _read(reader, fetched)
    objects = Objects(bytes(home))

    def is_stored(payload: Payload) -> bool:
        return objects.has(payload.digest) or chance.random() < 0.05

    gap_max = chance.choice((0, 100, 512))
    plan = table.plan(is_stored, gap_max)
    if table.split_span is not None and chance.random() < 0.7:
        (split,) = fetched.get([table.split_span])
        plan = table.split_plan(split, is_stored, gap_max)
    fetched.spans = plan.spans
    assembled = Assembled(plan.pieces(), fetched, objects, len(blob), "fuzzed", limits)
    pieces = []
    try:
        while piece := assembled.read(1 << 16):
            pieces.append(piece)
    except ObjectMissing as error:
        raise StoreError(f"fuzzed: {error}") from None
    return b"".join(pieces)


def _read(reader: Any, blob: _Blob) -> Table:
    spans = next(reader)
    while True:
        try:
            spans = reader.send(blob.get(spans))
        except StopIteration as end:
            table: Table = end.value
            return table


class _Blob:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.spans: list[Span] = []

    def get(self, spans: list[Span]) -> list[bytes]:
        """What is asked for at once."""
        assert len(spans) <= 1000
        for start, end in spans:
            assert 0 <= start < end <= len(self._data), (start, end, len(self._data))
        return [self._data[start:end] for start, end in spans]

    def read_at(self, start: int, size: int) -> bytes:
        """As `assembly.Fetched`."""
        assert any(begin <= start < end for begin, end in self.spans)
        end = min(end for begin, end in self.spans if start < end)
        (data,) = self.get([(start, min(start + size, end))])
        return data

    def give_up(self) -> None:
        """Nobody waits."""


def spoil(table: dict[str, Any], chance: random.Random) -> None:
    """Change a table in some places."""
    if chance.random() < 0.2:
        changed = mutate.document(table, chance)
        table.clear()
        table.update(changed if isinstance(changed, dict) else {"x": changed})
        return
    entries = table["entries"]
    for _ in range(chance.choice((1, 1, 2, 5))):
        entry = chance.choice(entries)
        kind = chance.random()
        if kind < 0.5:
            known = [other[key] for other in entries for key in _KEYS if key in other]
            entry[chance.choice(_KEYS)] = chance.choice((*_NUMBERS, *known))
        elif kind < 0.7:
            key = chance.choice(_WORDS)
            other = chance.choice(entries)
            entry[key] = chance.choice(
                (other.get(key), "", None, 7, "\ud800", "x" * 3000, {"a": 1})
            )
        elif kind < 0.8:
            entries.insert(chance.randrange(len(entries)), dict(entry))
        elif kind < 0.9:
            chance.shuffle(entries)
        else:
            entry.pop(chance.choice([*entry, "x"]), None)
