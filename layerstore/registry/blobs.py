"""Blobs on their way from a registry into files, and how they are read meanwhile.

A download that breaks goes on where it was (RFC 9110, section 14), a reader does not notice. What
comes is not trusted: a length that is not the manifest's ends the download, a digest that is not the
manifest's is found by who reads the blob.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Awaitable, Callable, Sequence

import httpx
import trio

from layerstore import digests
from layerstore.registry.access import Repository
from layerstore.registry.errors import Interruption, NotThere, RegistryError
from layerstore.registry.multipart import CONTENT_RANGE
from layerstore.registry.transport import receive

_BATCH_SIZE = 1 << 20
_ALIVE_SIZE = 16 << 10
"""Bytes within the time limit without which a download counts as stalled."""
PROGRESS_SIZE = 64 << 10
"""Bytes that make an attempt count as one that went on."""


class Blob:
    """A blob that is being downloaded: one task writes, any thread reads.

    What an earlier pull left of it is not trusted: it is shown to readers when all is there and has
    the right digest.

    Args:
        digest, size: as the manifest says.
        path: the file it goes to.
        fd: of the file, which may have the start of it; None: it is made.
    """

    def __init__(self, digest: str, size: int, path: bytes, fd: int | None = None) -> None:
        self.digest = digest
        self.size = size
        self.path = path
        self._is_complete = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        if fd is None:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._fd = fd
        self.received = os.fstat(fd).st_size
        self.fetched = 0
        """Bytes that came, some perhaps twice."""
        self.is_resumed = self.received > 0
        if self.received > size:
            self.restart()

    def restart(self) -> None:
        """Forget what is there."""
        os.ftruncate(self._fd, 0)
        self.received = 0
        self.is_resumed = False

    def is_sound(self) -> bool:
        """Whether what is there has the right digest."""
        with open(self.path, "rb", buffering=0) as file:
            return digests.of_stream(file)[0] == self.digest

    def close(self) -> None:
        """Close the file; it stays."""
        os.close(self._fd)

    def append(self, data: bytes) -> None:
        """Write what was received."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, self.received)
            view = view[written:]
            with self._changed:
                self.received += written
                self._changed.notify_all()

    def complete(self) -> None:
        """Tell the readers that this was all, and the download ended as it should."""
        with self._changed:
            self._is_complete = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Tell the readers that there will be no more."""
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def wait(self, length: int, is_abandoned: Callable[[], bool]) -> None:
        """Wait until so many bytes are there, and for all of them until nothing follows.

        Args:
            length: at most `size`.
            is_abandoned: whether waiting is to end all the same.

        Raises:
            StoreError, OSError: the download failed.
        """
        with self._changed:
            while not self._may_be_read(length):
                if is_abandoned():
                    return
                if self._error is not None:
                    raise self._error
                self._changed.wait()

    def _may_be_read(self, length: int) -> bool:
        if self._is_complete:
            return True
        return not self.is_resumed and self.received >= length and length < self.size

    def wake(self) -> None:
        """Have every waiting reader look again whether it is abandoned."""
        with self._changed:
            self._changed.notify_all()

    def read_at(self, position: int, length: int) -> bytes:
        """What is there of the bytes from a position on."""
        return os.pread(self._fd, min(length, self.received - position), position)

    def open(self) -> BlobReader:
        """The content, from its start."""
        return BlobReader(self)


class BlobReader(io.RawIOBase):
    """Reads a blob while it comes: waits for as much as is asked for."""

    def __init__(self, blob: Blob) -> None:
        super().__init__()
        self._blob = blob
        self._position = 0
        self._abandoned = False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        left = self._blob.size - self._position
        size = left if size < 0 else min(size, left)
        self._blob.wait(self._position + size, lambda: self._abandoned)
        data = self._blob.read_at(self._position, size)
        self._position += len(data)
        return data

    def give_up(self) -> None:
        """Have a read that waits in another thread return at once, and all later ones."""
        self._abandoned = True
        self._blob.wake()


async def download(
    blob: Blob, sources: Sequence[Repository], on_progress: Callable[[int], None] | None = None
) -> None:
    """Download a blob, from the first source that can give it to its end.

    Args:
        blob: where it goes; what it has already is not downloaded.
        sources: where it may be.
        on_progress: told how many bytes are there.

    Raises:
        RegistryError: none of them can; what came stays in the file.
        OSError: it cannot be written.
    """
    await _download_from_any(blob, sources, on_progress)
    if blob.is_resumed and not await trio.to_thread.run_sync(blob.is_sound):
        blob.restart()
        await _download_from_any(blob, sources, on_progress)
    blob.complete()


async def _download_from_any(
    blob: Blob, sources: Sequence[Repository], on_progress: Callable[[int], None] | None
) -> None:
    for number, source in enumerate(sources, 1):
        try:
            await _download_from(blob, source, on_progress)
            return
        except RegistryError:
            if number == len(sources):
                raise


async def _download_from(
    blob: Blob, source: Repository, on_progress: Callable[[int], None] | None
) -> None:
    failures = 0
    while blob.received < blob.size:
        before = blob.received
        try:
            await _continue(blob, source, on_progress)
        except Interruption as interruption:
            failures = 1 if blob.received - before >= PROGRESS_SIZE else failures + 1
            await source.registry.patience.after(interruption, failures)


async def _continue(
    blob: Blob, source: Repository, on_progress: Callable[[int], None] | None
) -> None:
    registry = source.registry
    start = blob.received
    headers = {"Range": f"bytes={start}-"} if start else {}
    async with registry.exchange(
        "GET", await source.blob_url(blob.digest), headers=headers
    ) as response:
        if response.status_code == 206 and start:
            _check_range(blob, source, response)
            skip = 0
        elif response.status_code == 200:
            skip = start  # a registry without ranges starts again
        else:
            error = registry.failure(response, await registry.transport.read_whole(response))
            if isinstance(error, NotThere):
                error = NotThere(f"{source}: the blob {blob.digest} is missing")
            raise error
        length = response.headers.get("Content-Length")
        if length is not None and length != str(blob.size - start + skip):
            raise _wrong_size(blob, source, f"{length} bytes")
        await _receive(blob, source, response, skip, on_progress)
    if blob.received < blob.size:
        raise Interruption(_wrong_size(blob, source, f"ended after {blob.received} bytes"))


def _check_range(blob: Blob, source: Repository, response: httpx.Response) -> None:
    said = response.headers.get("Content-Range", "")
    match = CONTENT_RANGE.fullmatch(said)
    wanted = (blob.received, blob.size - 1)
    if match is None or (int(match[1]), int(match[2])) != wanted:
        raise RegistryError(
            f"{source}: blob {blob.digest}: asked for bytes {wanted[0]} to {wanted[1]}, the registry"
            f" sends {said!r}"
        )
    if match[3] not in ("*", str(blob.size)):
        raise _wrong_size(blob, source, f"{match[3]} bytes")


async def _receive(
    blob: Blob,
    source: Repository,
    response: httpx.Response,
    skip: int,
    on_progress: Callable[[int], None] | None,
) -> None:
    """Take an answer's content but for its first `skip` bytes."""
    batch = bytearray()

    async def take(piece: bytes) -> None:
        nonlocal skip
        blob.fetched += len(piece)
        if skip:
            skip, piece = max(0, skip - len(piece)), piece[skip:]
        batch.extend(piece)
        if blob.received + len(batch) > blob.size:
            raise _wrong_size(blob, source, "more bytes")
        if len(batch) >= _BATCH_SIZE:
            # Not on the event loop, which keeps the time limits of the others.
            await trio.to_thread.run_sync(blob.append, bytes(batch))
            batch.clear()
            if on_progress is not None:
                on_progress(blob.received)

    try:
        await receive_steadily(source, response, take)
    finally:
        # What came of a download that breaks need not come again.
        if blob.received + len(batch) <= blob.size:
            blob.append(bytes(batch))
    if on_progress is not None:
        on_progress(blob.received)


async def receive_steadily(
    source: Repository, response: httpx.Response, take: Callable[[bytes], Awaitable[None]]
) -> None:
    """As `transport.receive`, as long as it keeps coming.

    Raises:
        Interruption: (next to) nothing came for as long as patience allows.
        Exception: what `take` raised.
    """
    timeout_s = source.registry.patience.timeout_s
    alive = 0

    async def watch(piece: bytes) -> None:
        nonlocal alive
        alive += len(piece)
        await take(piece)
        if alive >= _ALIVE_SIZE:
            alive = 0
            scope.deadline = trio.current_time() + timeout_s

    with trio.move_on_after(timeout_s) as scope:
        await receive(response, watch)
    if scope.cancelled_caught:
        raise source.registry.transport.stalled(response.request.url)


def _wrong_size(blob: Blob, source: Repository, found: str) -> RegistryError:
    return RegistryError(
        f"{source}: blob {blob.digest}: the registry sends {found}, the manifest says {blob.size}"
    )
