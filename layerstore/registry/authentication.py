"""How a registry is convinced: basic authentication, or a token from where it says.

Sources: RFC 7617; Docker's "Token Authentication Specification" and its OAuth 2 variant.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import trio

from layerstore.errors import show
from layerstore.registry.challenges import Challenge
from layerstore.registry.credentials import Credentials
from layerstore.registry.errors import Denied, RegistryError

CLIENT_ID = "layerstore"


class Fetch(Protocol):
    """Asks a token endpoint and returns what it answers with status 200.

    Args:
        realm: the URL of the endpoint.
        query: added to it.
        credentials: for basic authentication, None for none.
        form: to be posted; None: the request is a GET.

    Raises:
        Denied: it refuses.
        RegistryError: it cannot be asked, or may not be with a secret.
    """

    async def __call__(
        self,
        realm: str,
        query: Sequence[tuple[str, str]],
        credentials: Credentials | None,
        form: dict[str, str] | None,
    ) -> bytes: ...


class Authenticator:
    """The Authorization header for one registry.

    Args:
        registry: for messages.
        scopes: what tokens are to be good for, as in `repository:NAME:pull`.
        find: the credentials for the registry, looked up when they are asked for.
        fetch: asks token endpoints.
    """

    def __init__(
        self,
        registry: str,
        scopes: Sequence[str],
        find: Callable[[], Awaitable[Credentials | None]],
        fetch: Fetch,
    ) -> None:
        self._registry = registry
        self._scopes = scopes
        self._find = find
        self._fetch = fetch
        self._lock = trio.Lock()
        self.header: str | None = None

    async def renew(self, refused: str | None, challenges: Sequence[Challenge]) -> None:
        """Make a new header, since the registry refused one.

        Args:
            refused: the header that it refused, None where there was none.
            challenges: what it asks for.

        Raises:
            RegistryError: it asks for what is not known here, or there is nothing to answer with.
        """
        async with self._lock:
            if self.header != refused:
                return  # another request was faster
            self.header = await self._answer(challenges)
            if self.header == refused:
                found = await self._find()
                raise Denied(f"{self._registry}: {_refusal(found)}")

    async def _answer(self, challenges: Sequence[Challenge]) -> str:
        known = {challenge.scheme: challenge for challenge in reversed(challenges)}
        if "bearer" in known:
            return "Bearer " + await self._token(known["bearer"])
        if "basic" in known:
            credentials = await self._find()
            if credentials is None or credentials.is_identity_token:
                raise Denied(f"{self._registry}: {_refusal(None)}")
            return basic(credentials)
        asked = ", ".join(challenge.scheme for challenge in challenges) or "nothing"
        raise RegistryError(
            f"{self._registry}: wants authentication by {show(asked)}; known are Bearer and Basic"
        )

    async def _token(self, challenge: Challenge) -> str:
        realm = challenge.parameters.get("realm", "")
        if not realm:
            raise RegistryError(f"{self._registry}: wants a token, but says not from where (realm)")
        credentials = await self._find()
        service = challenge.parameters.get("service")
        query = [("service", service)] if service is not None else []
        if credentials is not None and credentials.is_identity_token:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": credentials.secret,
                "client_id": CLIENT_ID,
                "scope": " ".join(self._scopes),
                **dict(query),
            }
            return self._token_of(await self._fetch(realm, [], None, form), realm)
        query += [("scope", scope) for scope in self._scopes]
        if credentials is not None:
            query.append(("account", credentials.user))
        try:
            answer = await self._fetch(realm, query, credentials, None)
        except Denied:
            raise Denied(f"{self._registry}: {_refusal(credentials)}") from None
        return self._token_of(answer, realm)

    def _token_of(self, answer: bytes, realm: str) -> str:
        try:
            content: Any = json.loads(answer)
        except (ValueError, RecursionError):
            content = None
        content = content if isinstance(content, dict) else {}
        token = content.get("token") or content.get("access_token")
        # Only what may stand in a header: nothing that would start another one.
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise RegistryError(f"{self._registry}: {show(realm)} answers with no token")
        return token


def basic(credentials: Credentials) -> str:
    """The Authorization header for basic authentication."""
    pair = f"{credentials.user}:{credentials.secret}".encode()
    return "Basic " + base64.b64encode(pair).decode()


def _refusal(credentials: Credentials | None) -> str:
    if credentials is None:
        return "wants a login: give --creds USER:PASSWORD, or use podman login"
    return (
        f"does not take the credentials of {show(credentials.user)} from {credentials.source}"
        " for this"
    )
