"""A layer of which the store has most files already: its table of contents, and the rest by ranges.

Whatever goes wrong with that, the layer is downloaded whole instead; its importer sees to it that what
came is right.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import BinaryIO, NamedTuple, cast

import trio

from layerstore.errors import SourceInvalid
from layerstore.objects import Objects
from layerstore.oci import estargz, zstd_chunked
from layerstore.oci.assembly import Assembled, Plan, Span
from layerstore.oci.limits import Limits
from layerstore.oci.manifests import Descriptor
from layerstore.oci.toc import Payload, Reader, Table
from layerstore.registry.access import Repository
from layerstore.registry.errors import RegistryError
from layerstore.registry.ranges import RangeClient, Ranges

log = logging.getLogger(__name__)

_SAVED_MIN = 64 << 10
_SAVED_SHARE = 20
"""What must be saved: bytes, and one of so many of the blob's. A whole download is one request, which
goes on where it was and is unpacked while it comes."""


class _Cost(NamedTuple):
    """Of one more range: `gap_max`, see `assembly.plan`; `bytes` of heads."""

    gap_max: int
    bytes: int


_TOGETHER = _Cost(512, 200)
"""Many in a request. The head of a part takes some 160 bytes, and its range in the request 20. On a layer
of 5,863 entries of which most are there: 963 kB and 3,284 ranges with no gap taken in, 1,045 kB and
3,077 with 512, 1,375 kB and 2,647 with 1,024."""
_ONE_BY_ONE = _Cost(64 << 10, 1000)
"""A request each: at 50 ms to the registry and six at a time each takes the time of 100 kB at 100 Mbit/s.
On the same layer 39 requests for 18 MB of 29; with gaps of 4 KiB 1,200 for 4.7 MB."""


class Parts:
    """One layer; `run` is for trio, the rest for any thread.

    Args:
        label: what it is called in messages.
        descriptor: of the layer, which may say that its blob has a table of contents.
        objects: of the store.
        limits: for what comes out.
        scratch: a directory for what comes.
    """

    def __init__(
        self, label: str, descriptor: Descriptor, objects: Objects, limits: Limits, scratch: bytes
    ) -> None:
        self.fetched = 0
        """Bytes that came."""
        self._label = label
        self._descriptor = descriptor
        self._objects = objects
        self._limits = limits
        self._scratch = scratch
        self._decided = threading.Event()
        self._plan: Plan | None = None
        self._ranges: Ranges | None = None
        self._reason: Exception | None = None
        self._failure: BaseException | None = None

    # --- for the importer

    def open(self) -> BinaryIO | None:
        """The tar, put together while its parts come; None if the blob is to be downloaded whole.

        Raises:
            StoreError: the pull has failed.
        """
        self._decided.wait()
        if self._failure is not None:
            raise self._failure
        if self._plan is None or self._ranges is None:
            if self._reason is not None:
                log.warning("%s; it is downloaded whole", self._reason)
            return None
        assembled = Assembled(
            self._plan.pieces(),
            self._ranges,
            self._objects,
            self._descriptor["size"],
            self._label,
            self._limits,
        )
        return cast(BinaryIO, assembled)

    def fail(self, error: BaseException) -> None:
        """The pull has failed."""
        self._failure = error
        if self._ranges is not None:
            self._ranges.fail(error)
        self._decided.set()

    def close(self) -> None:
        """Nobody reads or writes any more."""
        if self._ranges is not None:
            self._ranges.close()

    # --- in trio

    async def run(
        self,
        sources: Sequence[Repository],
        limit: trio.CapacityLimiter,
        on_progress: Callable[[int, int], None] | None,
    ) -> bool:
        """Fetch what is missing; returns whether that was done, not the blob to be downloaded whole.

        Args:
            sources: where the blob may be.
            limit: on requests at a time.
            on_progress: told the bytes that came, and how many there will be.

        Raises:
            OSError: it cannot be written.
        """
        try:
            for number, source in enumerate(sources, 1):
                try:
                    return await self._run_from(source, limit, on_progress)
                except RegistryError:
                    if number == len(sources):
                        raise
            return False
        except (RegistryError, SourceInvalid) as error:
            self._reason = error
            if self._ranges is not None:
                self._ranges.fail(SourceInvalid(str(error)))
            return False
        finally:
            self._decided.set()

    async def _run_from(
        self,
        source: Repository,
        limit: trio.CapacityLimiter,
        on_progress: Callable[[int, int], None] | None,
    ) -> bool:
        total = 0

        def came(count: int) -> None:
            self.fetched += count
            if on_progress is not None and total:
                on_progress(min(self.fetched, total), total)

        digest, size = self._descriptor["digest"], self._descriptor["size"]
        client = RangeClient(source, digest, size, limit, came)
        if self._ranges is None:
            plan = await self._find_plan(client)
            if plan is None:
                return False
            self._plan, self._ranges = plan, Ranges(self._scratch, plan.spans)
            self._decided.set()
        total = self.fetched + self._ranges.size - sum(self._ranges.received)
        await client.fetch(self._ranges)
        return True

    async def _find_plan(self, client: RangeClient) -> Plan | None:
        """How to come by the layer; None if whole is as good."""
        reader = find_reader(self._descriptor, self._label)
        if reader is None:
            return None
        table = await self._read(reader, client)
        cost = _TOGETHER if client.takes_several else _ONE_BY_ONE
        plan = await trio.to_thread.run_sync(table.plan, self._is_stored, cost.gap_max)
        if table.split_span is not None:
            start, end = table.split_span
            missing = await trio.to_thread.run_sync(self._missing, table)
            if missing + end - start + cost.bytes < _total(plan, cost):
                (split,) = await self._fetch(client, [table.split_span])
                other = await trio.to_thread.run_sync(
                    table.split_plan, split, self._is_stored, cost.gap_max
                )
                plan = min(plan, other, key=lambda one: _total(one, cost))
        size: int = self._descriptor["size"]
        saved = size - _total(plan, cost)
        return plan if saved >= max(_SAVED_MIN, size // _SAVED_SHARE) else None

    async def _read(self, reader: Reader, client: RangeClient) -> Table:
        data: list[bytes] | None = None
        while True:
            # Large tables take a while to be parsed.
            step = await trio.to_thread.run_sync(_advance, reader, data)
            if not isinstance(step, list):
                return step
            data = await self._fetch(client, step)

    async def _fetch(self, client: RangeClient, spans: list[Span]) -> list[bytes]:
        """Small spans."""
        ranges = Ranges(self._scratch, spans)
        try:
            await client.fetch(ranges)
            return [ranges.read_at(start, end - start) for start, end in spans]
        finally:
            ranges.close()

    def _is_stored(self, payload: Payload) -> bool:
        try:
            return os.stat(self._objects.path(payload.digest)).st_size == payload.size
        except OSError:
            return False

    def _missing(self, table: Table) -> int:
        return sum(one.end - one.start for one in table.payloads if not self._is_stored(one))


def has_table(descriptor: Descriptor) -> bool:
    """Whether the blob of a layer is said to have a table of contents."""
    return find_reader(descriptor, "") is not None


def find_reader(descriptor: Descriptor, label: str) -> Reader | None:
    """What reads the table of contents of a layer; None if it is not said to have one."""
    annotations = descriptor.get("annotations")
    if not isinstance(annotations, dict):
        return None
    label = f"{label}: its table of contents"
    size: int = descriptor["size"]
    # containerd's zstd:chunked has the annotations of both.
    found = zstd_chunked.reader(annotations, size, label)
    return found if found is not None else estargz.reader(annotations, size, label)


def _advance(reader: Reader, data: list[bytes] | None) -> list[Span] | Table:
    """What a reader asks for next, or the table it has read."""
    try:
        return next(reader) if data is None else reader.send(data)
    except StopIteration as end:
        table: Table = end.value
        return table


def _total(plan: Plan, cost: _Cost) -> int:
    return plan.size + len(plan.spans) * cost.bytes
