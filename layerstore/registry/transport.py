"""HTTP without policy: one client for each host, with what TLS trusts there, and what goes wrong on
the way said in one line. Used from one trio task tree.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

import httpx
import trio

from layerstore.errors import show
from layerstore.registry import trust
from layerstore.registry.errors import Interruption, RegistryError

Content = Callable[[], httpx.AsyncByteStream]
"""Makes the body of a request, anew for each attempt. No generator: nobody would close it when a
request breaks."""

ANSWER_MAX = 4 << 20
"""Bytes of an answer that is read whole: as large as a manifest may be."""


class Transport:
    """Requests to any host; use as an async context manager.

    Args:
        timeout_s: how long a connection may take, or give nothing, in seconds.
        insecure: do without TLS, or without knowing the certificate, on this machine.
        cert_dirs: by host and port, see `trust.tls_context`.
    """

    def __init__(
        self,
        timeout_s: float,
        *,
        insecure: bool = False,
        cert_dirs: Mapping[tuple[str, int], str] | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._insecure = insecure
        self._cert_dirs = cert_dirs or {}
        self._stack = contextlib.AsyncExitStack()
        self._clients: dict[tuple[str, int], httpx.AsyncClient] = {}

    async def __aenter__(self) -> Transport:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @contextlib.asynccontextmanager
    async def send(
        self,
        method: str,
        url: httpx.URL,
        headers: Mapping[str, str],
        content: Content | bytes | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """One request, and its answer while the context lasts; redirects are not followed.

        Raises:
            Interruption: it failed in a way that may pass; also for what reading the answer raises.
            RegistryError: it failed.
        """
        client = self._client(url)
        with self._explained(url):
            request = client.build_request(
                method,
                url,
                # Digests are of what is sent, not of what that unpacks to.
                headers={"Accept-Encoding": "identity", **headers},
                content=None if callable(content) else content,
            )
            if callable(content):
                request.stream = content()
            response = await client.send(request, stream=True)
            try:
                yield response
            finally:
                # Whatever ends the context, the connection goes back or away.
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await response.aclose()

    async def read_whole(self, response: httpx.Response) -> bytes:
        """The content of a small answer.

        Raises:
            Interruption: it does not come in time.
            RegistryError: it is not small.
        """
        data = bytearray()

        async def take(piece: bytes) -> None:
            data.extend(piece)
            if len(data) > ANSWER_MAX:
                where = shown(response.request.url)
                raise RegistryError(f"{where}: answers with more than {ANSWER_MAX} bytes")

        with trio.move_on_after(self._timeout_s) as scope:
            await receive(response, take)
        if scope.cancelled_caught:
            raise self.stalled(response.request.url)
        return bytes(data)

    def follow(self, base: httpx.URL, location: str) -> httpx.URL:
        """Where a Location header, or another address that an answer names, leads.

        Raises:
            RegistryError: nowhere, or to plain http.
        """
        try:
            url = base.join(location)
        except (httpx.InvalidURL, ValueError):
            url = httpx.URL()
        if url.scheme not in ("http", "https") or not url.host:
            raise RegistryError(f"{shown(base)}: leads to {show(location)!r}, which is no place")
        if url.scheme == "http" and not (self._insecure and trust.is_loopback(url.host)):
            raise RegistryError(
                f"{shown(base)}: leads to {shown(url)} without TLS, which is only followed on this"
                " machine, with --insecure"
            )
        # User and password in it would be credentials that nobody gave.
        return url.copy_with(username=None, password=None, fragment=None)

    async def speaks_plain(self, url: httpx.URL) -> bool:
        """Whether who is at a URL answers without TLS, in earnest.

        Asked this way round, since a server without TLS may wait for the rest of what it takes for
        a request; one with TLS answers 400, or hangs up.
        """
        try:
            async with self.send("HEAD", url, {}) as response:
                return response.status_code != 400 and not response.has_redirect_location
        except (Interruption, RegistryError):
            return False

    def stalled(self, url: httpx.URL) -> Interruption:
        """What to raise when an answer does not come."""
        return Interruption(
            RegistryError(f"{shown(url)}: (next to) nothing came for {self._timeout_s:g} seconds")
        )

    def _client(self, url: httpx.URL) -> httpx.AsyncClient:
        place = (url.host, url.port or trust.HTTPS_PORT)
        if place not in self._clients:
            is_local = trust.is_loopback(url.host)
            context = (
                trust.unverified_context()
                if self._insecure and is_local
                else trust.tls_context(*place, self._cert_dirs.get(place))
            )
            client = httpx.AsyncClient(
                verify=context,
                timeout=httpx.Timeout(self._timeout_s, pool=None),
                # A proxy would look for this machine's registries on its own machine.
                trust_env=not is_local,
                headers={"User-Agent": "layerstore"},
            )
            self._stack.push_async_callback(client.aclose)
            self._clients[place] = client
        return self._clients[place]

    @contextlib.contextmanager
    def _explained(self, url: httpx.URL) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectTimeout:
            error = RegistryError(f"{shown(url)}: no connection within {self._timeout_s:g} seconds")
            raise Interruption(error, attempts_max=2) from None
        except httpx.TimeoutException:
            raise self.stalled(url) from None
        except httpx.ConnectError as error:
            raise _unreachable(url, error) from None
        except httpx.TransportError as error:
            what = show(str(error)) or type(error).__name__
            raise Interruption(
                RegistryError(f"{shown(url)}: the connection broke: {what}")
            ) from None


async def receive(response: httpx.Response, take: Callable[[bytes], Awaitable[None]]) -> None:
    """Hand the content of an answer to `take`, piece by piece, as it is sent.

    Raises:
        Exception: what `take` raised, after which it is not called any more. It is not cancelled.
    """
    failure: Exception | None = None
    with trio.CancelScope() as scope:
        async for piece in response.aiter_raw():
            if failure is not None:
                continue
            try:
                with trio.CancelScope(shield=True):
                    await take(piece)
            except Exception as error:
                # Generators within generators of httpx would be left behind by an exception out here:
                # a cancellation reaches the innermost.
                failure = error
                scope.cancel()
    if failure is not None:
        raise failure


def origin(url: httpx.URL) -> tuple[str, str, int]:
    """Scheme, host and port: what credentials belong to."""
    return url.scheme, url.host, url.port or {"http": 80}.get(url.scheme, trust.HTTPS_PORT)


def shown(url: httpx.URL) -> str:
    """A URL for a message: without its query, which may hold a signature."""
    bare = url.copy_with(query=None, fragment=None, username=None, password=None)
    return show(str(bare))


def _unreachable(url: httpx.URL, error: httpx.ConnectError) -> Exception:
    where = f"{url.host}:{url.port}" if url.port else url.host
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return RegistryError(
                f"{where}: its certificate is not trusted: {cause.verify_message}: --cert-dir DIR"
                " or SSL_CERT_FILE names its authority"
            )
        if isinstance(cause, ssl.SSLError):
            reason = (cause.reason or str(cause)).replace("_", " ").lower()
            plain = trust.is_loopback(url.host) and reason == "wrong version number"
            hint = ": it may speak plain http, which --insecure allows" if plain else ""
            return RegistryError(f"{where}: no TLS with it: {reason}{hint}")
        if isinstance(cause, socket.gaierror):
            found = RegistryError(f"{where}: no such host: {cause.strerror}")
            # A name that is not there may be a resolver that is not there yet.
            return Interruption(found, attempts_max=2)
        if isinstance(cause, OSError) and cause.errno:
            found = RegistryError(f"{where}: cannot be reached: {os.strerror(cause.errno)}")
            return Interruption(found, attempts_max=2)
    return Interruption(RegistryError(f"{where}: cannot be reached: {show(str(error))}"))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        if isinstance(error, BaseExceptionGroup):
            for one in error.exceptions:
                yield from _causes(one)
        yield error
        error = error.__cause__ or error.__context__
