"""Ranges of a blob from a registry, into a file, read by another thread while they come.

Several ranges are asked for in one request as long as the server answers so: docker-registry (Go's
net/http) does, 160 bytes a range; object stores behind registries mostly answer with all of the blob, or
with the first range.
"""

from __future__ import annotations

import bisect
import itertools
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence

import httpx
import trio

from layerstore.oci.assembly import Span
from layerstore.registry.access import Repository
from layerstore.registry.blobs import PROGRESS_SIZE, receive_steadily
from layerstore.registry.errors import Interruption, RegistryError
from layerstore.registry.multipart import Multipart, NotAsAsked, boundary_of, check_range

_BATCH_SIZE = 1 << 20
_REQUEST_SPANS_MAX = 96
"""Ranges in a request: a header of 2 KiB; servers refuse more than 4 to 8 KiB of a line, Apache more
than 200 ranges."""
_REQUEST_SIZE = 8 << 20
"""Bytes after which another request is made, so that several run side by side."""


class Ranges:
    """Ranges of a blob: tasks write, each its own, and any thread reads.

    Args:
        directory: for the file, which has no name.
        spans: ascending, apart from each other.
    """

    def __init__(self, directory: bytes, spans: Sequence[Span]) -> None:
        self.spans = spans
        self.received = [0] * len(spans)
        """Bytes of each that are there."""
        self.is_unwanted = False
        """Whether nobody reads any more."""
        self._starts = [start for start, _ in spans]
        sizes = [end - start for start, end in spans]
        self._places = [0, *itertools.accumulate(sizes)]
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return self._places[-1]

    def left(self, number: int) -> Span:
        """What is missing of a range."""
        start, end = self.spans[number]
        return start + self.received[number], end

    def write(self, pieces: Sequence[tuple[int, bytes]]) -> None:
        """Write what came: the number of a range, and the next bytes of it."""
        for number, data in pieces:
            view = memoryview(data)
            while view:
                place = self._places[number] + self.received[number]
                count = os.pwrite(self._file.fileno(), view, place)
                view = view[count:]
                self.received[number] += count
        with self._changed:
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Tell the reader that there will be no more."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody reads or writes any more."""
        self._file.close()

    # --- assembly.Fetched

    def read_at(self, start: int, size: int) -> bytes:
        """At most `size` bytes from there on, waiting for the first of them.

        Raises:
            StoreError, OSError: they do not come.
        """
        number = bisect.bisect_right(self._starts, start) - 1
        begin, end = self.spans[number]
        assert begin <= start < end, "the plan asks for it"
        with self._changed:
            while begin + self.received[number] <= start:
                if self.is_unwanted:
                    return b""
                if self._error is not None:
                    raise self._error
                self._changed.wait()
            size = min(size, begin + self.received[number] - start)
        return os.pread(self._file.fileno(), size, self._places[number] + start - begin)

    def give_up(self) -> None:
        """Have a read that waits in another thread return at once, and all later ones."""
        with self._changed:
            self.is_unwanted = True
            self._changed.notify_all()


class RangeClient:
    """Asks a registry for ranges of one blob.

    Args:
        source: where it is.
        digest, size: of the blob.
        limit: on requests at a time.
        on_fetched: told of every piece how many bytes came.
    """

    def __init__(
        self,
        source: Repository,
        digest: str,
        size: int,
        limit: trio.CapacityLimiter,
        on_fetched: Callable[[int], None],
    ) -> None:
        self.takes_several = True
        """Whether it answers to several ranges at once, as far as is known."""
        self._source = source
        self._digest = digest
        self._size = size
        self._limit = limit
        self._on_fetched = on_fetched

    async def fetch(self, ranges: Ranges) -> None:
        """Fetch all that is missing.

        Raises:
            RegistryError: it does not come.
            OSError: it cannot be written.
        """
        failures: list[Exception] = []
        async with trio.open_nursery() as nursery:

            async def run(batch: list[int]) -> None:
                try:
                    await self._fetch_batch(ranges, batch)
                except (RegistryError, OSError) as error:
                    failures.append(error)
                    nursery.cancel_scope.cancel()

            for batch in _batches(ranges):
                nursery.start_soon(run, batch)
        if failures:
            raise failures[0]

    async def _fetch_batch(self, ranges: Ranges, batch: list[int]) -> None:
        failures = 0
        while True:
            left = [number for number in batch if ranges.left(number)[0] < ranges.left(number)[1]]
            if not left or ranges.is_unwanted:
                return
            before = sum(ranges.received[number] for number in batch)
            try:
                async with self._limit:
                    await self._ask(ranges, left if self.takes_several else left[:1])
            except Interruption as interruption:
                came = sum(ranges.received[number] for number in batch) - before
                failures = 1 if came >= PROGRESS_SIZE else failures + 1
                await self._source.registry.patience.after(interruption, failures)

    async def _ask(self, ranges: Ranges, numbers: list[int]) -> None:
        registry = self._source.registry
        spans = [ranges.left(number) for number in numbers]
        asked = ",".join(f"{start}-{end - 1}" for start, end in spans)
        url = await self._source.blob_url(self._digest)
        async with registry.exchange("GET", url, headers={"Range": f"bytes={asked}"}) as response:
            try:
                if response.status_code == 206:
                    await self._receive(ranges, numbers, spans, response)
                    return
                if response.status_code not in (200, 400, 416):
                    said = await registry.transport.read_whole(response)
                    raise registry.failure(response, said)
                raise NotAsAsked(f"answers with status {response.status_code}, not with a part")
            except NotAsAsked as error:
                if len(numbers) == 1:
                    raise RegistryError(
                        f"{self._source}: ranges of blob {self._digest}: {error}"
                    ) from None
                self.takes_several = False

    async def _receive(
        self, ranges: Ranges, numbers: list[int], spans: list[Span], response: httpx.Response
    ) -> None:
        pieces: list[tuple[int, bytes]] = []
        waiting = 0
        boundary = boundary_of(response.headers.get("Content-Type", ""))
        left = [end - start for start, end in spans]

        def keep(number: int, data: bytes) -> None:
            nonlocal waiting
            left[number] -= len(data)
            if left[number] < 0:
                raise NotAsAsked("more bytes than asked for")
            pieces.append((numbers[number], data))
            waiting += len(data)

        if boundary is not None:
            parts = Multipart(boundary, spans, self._size, keep)
            feed = parts.feed
        else:
            check_range(response.headers.get("Content-Range", ""), spans[0], self._size)
            if len(spans) > 1:
                raise NotAsAsked("one part of several")

            def feed(data: bytes) -> None:
                keep(0, data)

        async def take(data: bytes) -> None:
            nonlocal waiting
            self._on_fetched(len(data))
            feed(data)
            if waiting >= _BATCH_SIZE:
                # Not on the event loop, which keeps the time limits of the others.
                await trio.to_thread.run_sync(ranges.write, list(pieces))
                pieces.clear()
                waiting = 0

        try:
            await receive_steadily(self._source, response, take)
        finally:
            ranges.write(pieces)
        if any(left):
            raise Interruption(
                RegistryError(
                    f"{self._source}: ranges of blob {self._digest}: {sum(left)} bytes are missing"
                )
            )


def _batches(ranges: Ranges) -> Iterator[list[int]]:
    batch: list[int] = []
    size = 0
    for number, (start, end) in enumerate(ranges.spans):
        batch.append(number)
        size += end - start
        if len(batch) == _REQUEST_SPANS_MAX or size >= _REQUEST_SIZE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
