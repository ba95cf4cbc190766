"""Blobs on their way into a registry: looked for, mounted, or uploaded in one piece or several.

An upload that breaks goes on where the registry says it is. Source: OCI distribution spec,
"Pushing blobs" and "Mounting a blob from another repository".
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple
from urllib.parse import quote

import httpx
import trio

from layerstore.errors import show
from layerstore.registry.access import Repository
from layerstore.registry.client import Answer
from layerstore.registry.errors import Interruption, RegistryError
from layerstore.registry.transport import shown

_PIECE_SIZE = 1 << 18
CHUNK_SIZE = 64 << 20
"""Bytes in a request, unless the registry wants more: proxies before registries have limits of some
100 MB."""
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]+)")


class Content(NamedTuple):
    """What is uploaded: a file's bytes, which have this digest."""

    digest: str
    size: int
    path: bytes


async def has_blob(repository: Repository, digest: str, size: int) -> bool:
    """Whether a repository has a blob.

    Raises:
        RegistryError: it cannot be asked, or has something of another size.
    """
    url = await repository.blob_url(digest)
    answer = await repository.registry.request("HEAD", url, accept=(200, 404))
    if answer.status == 404:
        return False
    length = answer.headers.get("Content-Length", str(size))
    if length != str(size):
        raise RegistryError(f"{shown(url)}: has {show(length)} bytes there, not {size}")
    return True


async def mount_blob(repository: Repository, digest: str, mount_from: str) -> bool:
    """Have a registry take a blob from another of its repositories; returns whether it did."""
    url = await repository.uploads_url()
    url = _with_query(url, f"mount={quote(digest)}&from={quote(mount_from, safe='')}")
    headers = {"Content-Length": "0"}
    answer = await repository.registry.request(
        "POST", url, accept=(201, 202), headers=headers, content=b""
    )
    if answer.status == 202:
        await _cancel(repository, answer)
    return answer.status == 201


async def _cancel(repository: Repository, answer: Answer) -> None:
    """Give up an upload that a registry offers instead; that it may fail is no matter."""
    try:
        location = _location(repository, answer)
        await repository.registry.request_once("DELETE", location, accept=(200, 202, 204))
    except (Interruption, RegistryError):
        pass


async def upload_blob(
    repository: Repository, content: Content, on_progress: Callable[[int], None] | None = None
) -> None:
    """Upload a blob.

    Args:
        repository: where it goes.
        content: of the blob.
        on_progress: told how many bytes have been sent.

    Raises:
        RegistryError: it cannot be done.
        OSError: the content cannot be read.
    """
    fd = os.open(content.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        await _Upload(repository, content, fd, on_progress).run()
    finally:
        os.close(fd)


class _FilePart(httpx.AsyncByteStream):
    """Part of a file as the body of a request."""

    def __init__(
        self, fd: int, start: int, end: int, on_progress: Callable[[int], None] | None
    ) -> None:
        self._fd = fd
        self._position = start
        self._end = end
        self._on_progress = on_progress

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        size = min(_PIECE_SIZE, self._end - self._position)
        if size <= 0:
            raise StopAsyncIteration
        data = await trio.to_thread.run_sync(os.pread, self._fd, size, self._position)
        assert data, "nobody else writes to it"
        self._position += len(data)
        if self._on_progress is not None:
            self._on_progress(self._position)
        return data


class _Upload:
    def __init__(
        self,
        repository: Repository,
        content: Content,
        fd: int,
        on_progress: Callable[[int], None] | None,
    ) -> None:
        self._fd = fd
        self._repository = repository
        self._registry = repository.registry
        self._content = content
        self._on_progress = on_progress
        self._location: httpx.URL | None = None
        self._offset = 0  # what the registry has
        self._chunk_size = CHUNK_SIZE

    async def run(self) -> None:
        failures = 0
        while True:
            before = self._offset
            try:
                await self._go_on()
                return
            except Interruption as interruption:
                failures = 1 if self._offset > before else failures + 1
                await self._registry.patience.after(interruption, failures)
                await self._look_where_it_is()
                if self._location is None and await self._is_there():
                    return  # only the answer was lost

    async def _go_on(self) -> None:
        if self._location is None:
            await self._start()
        while self._content.size - self._offset > self._chunk_size:
            await self._send_chunk()
        await self._finish()

    async def _start(self) -> None:
        url = await self._repository.uploads_url()
        headers = {"Content-Length": "0"}
        answer = await self._registry.request_once(
            "POST", url, accept=(202,), headers=headers, content=b""
        )
        self._location = _location(self._repository, answer)
        self._offset = 0
        least = answer.headers.get("OCI-Chunk-Min-Length", "")
        if least.isascii() and least.isdecimal():
            self._chunk_size = max(CHUNK_SIZE, int(least))

    async def _send_chunk(self) -> None:
        assert self._location is not None
        end = self._offset + self._chunk_size
        answer = await self._registry.request_once(
            "PATCH",
            self._location,
            accept=(202, 204),
            headers=self._headers(end),
            content=lambda: self._part(end),
        )
        self._location = _location(self._repository, answer)
        self._offset = end

    async def _finish(self) -> None:
        assert self._location is not None
        end = self._content.size
        await self._registry.request_once(
            "PUT",
            _with_query(self._location, f"digest={quote(self._content.digest)}"),
            accept=(201, 204),
            headers=self._headers(end),
            content=lambda: self._part(end),
        )

    def _headers(self, end: int) -> dict[str, str]:
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(end - self._offset),
        }
        if end > self._offset and (self._offset or end < self._content.size):
            headers["Content-Range"] = f"{self._offset}-{end - 1}"
        return headers

    def _part(self, end: int) -> httpx.AsyncByteStream:
        return _FilePart(self._fd, self._offset, end, self._on_progress)

    async def _look_where_it_is(self) -> None:
        """Ask how much has arrived; a registry that does not know begins again."""
        location, self._location = self._location, None
        if location is None:
            return
        try:
            answer = await self._registry.request("GET", location, accept=(200, 202, 204))
        except RegistryError:
            self._offset = 0
            return
        match = _RANGE.fullmatch(answer.headers.get("Range", ""))
        # 0-0 is what registries say for a byte, and for none.
        if match is None or not 0 < int(match[1]) < self._content.size:
            self._offset = 0
            return
        self._offset = int(match[1]) + 1
        self._location = _location(self._repository, answer, location)

    async def _is_there(self) -> bool:
        return await has_blob(self._repository, self._content.digest, self._content.size)


def _location(
    repository: Repository, answer: Answer, default: httpx.URL | None = None
) -> httpx.URL:
    location = answer.headers.get("Location")
    if location is None:
        if default is None:
            raise RegistryError(f"{shown(answer.url)}: does not say where to upload to")
        return default
    return repository.registry.transport.follow(answer.url, location)


def _with_query(url: httpx.URL, query: str) -> httpx.URL:
    """A URL with more at the end of its query; what is there stays as it is, to the letter."""
    return httpx.URL(f"{url}{'&' if url.query else '?'}{query}")
