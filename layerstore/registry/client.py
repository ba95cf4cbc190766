"""One registry: requests with authentication, redirects and retries.

Credentials go to the registry's own origin (scheme, host and port) and to the token endpoint that
it names, never along a redirect to another origin, and over plain http only where the registry is
on this machine and the user said `insecure`. Used from one trio task tree.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack
from urllib.parse import urlencode

import httpx
import trio

from layerstore.errors import show
from layerstore.registry import trust
from layerstore.registry.authentication import Authenticator, basic
from layerstore.registry.challenges import parse_challenges
from layerstore.registry.credentials import Credentials
from layerstore.registry.errors import Denied, Interruption, NotThere, RegistryError
from layerstore.registry.patience import Patience, parse_retry_after
from layerstore.registry.references import DOCKER_HUB
from layerstore.registry.transport import Content, Transport, origin, shown

_REDIRECTS_MAX = 10
_REDIRECTS = (301, 302, 303, 307, 308)
_MAY_PASS = (408, 425, 429, 500, 502, 503, 504)
_HUB_HOST = "registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that was read whole. `url`: what it answers, after redirects."""

    status: int
    headers: httpx.Headers
    content: bytes
    url: httpx.URL


class RequestOptions(TypedDict, total=False):
    """The options of `Registry.request_once`."""

    accept: Sequence[int]
    headers: Mapping[str, str] | None
    content: Content | bytes | None


class Registry:
    """One registry; use as an async context manager.

    Args:
        name: `HOST[:PORT]`, as in a `Reference`.
        scopes: see `Authenticator`.
        find_credentials: blocking; called once at most, when they are asked for.
        patience: see there.
        cert_dir: see `trust.tls_context`.
        insecure: do without TLS, or without knowing the certificate; holds on this machine only.
    """

    def __init__(
        self,
        name: str,
        scopes: Sequence[str],
        find_credentials: Callable[[], Credentials | None],
        patience: Patience,
        *,
        cert_dir: str | None = None,
        insecure: bool = False,
    ) -> None:
        host, port = trust.split_host(name)
        self.name = name
        self.patience = patience
        self._host = _HUB_HOST if name == DOCKER_HUB else host
        self._port = port
        self._insecure = insecure
        places = {(self._host, port or trust.HTTPS_PORT): cert_dir} if cert_dir is not None else {}
        self.transport = Transport(patience.timeout_s, insecure=insecure, cert_dirs=places)
        self._find_credentials = find_credentials
        self._found: list[Credentials | None] = []
        self._authenticator = Authenticator(name, scopes, self._credentials, self._fetch_token)
        self._base: httpx.URL | None = None
        self._lock = trio.Lock()

    async def __aenter__(self) -> Registry:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.transport.__aexit__()

    async def url(self, path: str) -> httpx.URL:
        """The URL of a path below `/v2/`."""
        async with self._lock:
            if self._base is None:
                self._base = await self._find_base()
        return self._base.join(path)

    async def _find_base(self) -> httpx.URL:
        base = httpx.URL(scheme="https", host=self._host, port=self._port, path="/v2/")
        if self._insecure and trust.is_loopback(self._host):
            plain = base.copy_with(scheme="http")
            if await self.transport.speaks_plain(plain):
                return plain
        return base

    # --- requests

    async def request(
        self, method: str, url: httpx.URL, **options: Unpack[RequestOptions]
    ) -> Answer:
        """As `request_once`, again while the failure may pass.

        Raises:
            NotThere, Denied, RegistryError: there is no such answer.
        """

        async def attempt() -> Answer:
            return await self.request_once(method, url, **options)

        return await self.patience.keep_trying(attempt)

    async def request_once(
        self,
        method: str,
        url: httpx.URL,
        *,
        accept: Sequence[int] = (200,),
        headers: Mapping[str, str] | None = None,
        content: Content | bytes | None = None,
    ) -> Answer:
        """Send a request and read its answer whole.

        Args:
            method, url, headers, content: of the request; the length of a content that is not
                bytes is in the headers.
            accept: the statuses that are an answer.

        Raises:
            Interruption: it failed in a way that may pass.
            NotThere, Denied, RegistryError: there is no such answer.
        """
        async with self.exchange(method, url, headers=headers, content=content) as response:
            data = await self.transport.read_whole(response)
            if response.status_code not in accept:
                raise self.failure(response, data)
            return Answer(response.status_code, response.headers, data, response.request.url)

    @contextlib.asynccontextmanager
    async def exchange(
        self,
        method: str,
        url: httpx.URL,
        *,
        headers: Mapping[str, str] | None = None,
        content: Content | bytes | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """One attempt at a request: its answer after authentication and redirects, whatever its
        status; its content is still to be read.

        Raises:
            Interruption: it failed in a way that may pass.
            RegistryError: it failed.
        """
        refusals = 0
        for _ in range(_REDIRECTS_MAX + 2):
            own = {}
            if self._authenticator.header is not None and self._is_own(url):
                own["Authorization"] = self._authenticator.header
            async with self.transport.send(
                method, url, {**(headers or {}), **own}, content
            ) as response:
                # Refused elsewhere, credentials would not help: they do not go there.
                refused = response.status_code == 401 and self._is_own(url) and refusals < 2
                moved = response.status_code in _REDIRECTS and "Location" in response.headers
                if not refused and not moved:
                    yield response
                    return
            if refused:
                refusals += 1
                challenges = parse_challenges(response.headers.get_list("WWW-Authenticate"))
                await self._authenticator.renew(own.get("Authorization"), challenges)
            else:
                url = self.transport.follow(url, response.headers["Location"])
        raise RegistryError(f"{shown(url)}: redirects more than {_REDIRECTS_MAX} times")

    def failure(self, response: httpx.Response, data: bytes) -> Exception:
        """What to raise for an answer that is none.

        Args:
            data: its content.
        """
        where, said = shown(response.request.url), _reason(data)
        status = response.status_code
        if status in _MAY_PASS:
            error = RegistryError(f"{where}: answers with status {status}{said}")
            return Interruption(error, parse_retry_after(response.headers.get("Retry-After")))
        if status == 404:
            return NotThere(f"{where}: is not there{said}")
        if status in (401, 403):
            return Denied(f"{where}: access is denied{said}")
        return RegistryError(f"{where}: answers with status {status}{said}")

    def _is_own(self, url: httpx.URL) -> bool:
        return self._base is not None and origin(url) == origin(self._base)

    # --- credentials

    async def _credentials(self) -> Credentials | None:
        if not self._found:
            # A helper is a program that may take its time.
            self._found.append(await trio.to_thread.run_sync(self._find_credentials))
        return self._found[0]

    async def _fetch_token(
        self,
        realm: str,
        query: Sequence[tuple[str, str]],
        credentials: Credentials | None,
        form: dict[str, str] | None,
    ) -> bytes:
        url = self.transport.follow(await self.url(""), realm)
        url = url.copy_with(params=[*url.params.multi_items(), *query])
        headers = {"Authorization": basic(credentials)} if credentials is not None else {}
        content = None
        if form is not None:
            content = urlencode(form).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"

        async def attempt() -> bytes:
            method = "GET" if content is None else "POST"
            # Redirects are not followed: who is behind them is not whom the registry named.
            async with self.transport.send(method, url, headers, content) as response:
                data = await self.transport.read_whole(response)
                if response.status_code != 200:
                    raise self.failure(response, data)
                return data

        return await self.patience.keep_trying(attempt)


def _reason(data: bytes) -> str:
    """What an error answer says (distribution spec, "Error Codes"), to be put after a message."""
    try:
        errors = json.loads(data)["errors"]
        said = [str(error.get("message") or error["code"]) for error in errors]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return ""
    return f": {show(', '.join(said))[:300]}" if said else ""
