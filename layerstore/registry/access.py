"""How registries are reached: what a user may say about it, and the connections that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import httpx

from layerstore.registry import trust
from layerstore.registry.client import Registry
from layerstore.registry.configuration import (
    Location,
    is_insecure,
    locations,
    read_configuration,
)
from layerstore.registry.credentials import Credentials, find_credentials
from layerstore.registry.errors import RegistryError
from layerstore.registry.patience import Patience
from layerstore.registry.references import Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How registries are reached.

    `credentials`: for the registry that a reference names; else `authfile`, else the usual files.
    `cert_dir`: certificates as in certs.d, for that registry. `insecure`: do without TLS where a
    registry is on this machine. `mirrors`: `HOST[:PORT][/PATH]`, tried first. `patience`: see there.
    `jobs`: how many blobs at a time.
    """

    credentials: Credentials | None = None
    authfile: str | None = None
    cert_dir: str | None = None
    insecure: bool = False
    mirrors: Sequence[str] = ()
    patience: Patience = field(default_factory=Patience)
    jobs: int = 6

    def places(self, reference: Reference) -> list[Location]:
        """Where to try to pull an image from, in this order.

        Raises:
            StoreError: the configuration cannot be read or forbids it; `insecure` is of no use.
        """
        found = locations(reference, read_configuration(), self.mirrors, insecure=self.insecure)
        self._check(found)
        return found

    def place(self, reference: Reference) -> Location:
        """Where to push an image to.

        Raises:
            StoreError: the configuration cannot be read; `insecure` is of no use.
        """
        # Mirrors and locations are for reading only (containers-registries.conf(5)).
        insecure = self.insecure or is_insecure(reference, read_configuration())
        found = Location(reference.registry, reference.repository, insecure)
        self._check([found])
        return found

    def _check(self, found: Sequence[Location]) -> None:
        hosts = [trust.split_host(place.registry)[0] for place in found]
        if self.insecure and not any(map(trust.is_loopback, hosts)):
            raise RegistryError(
                f"{found[-1].registry}: is not on this machine, and without TLS whoever is between"
                " reads and changes what is sent: --insecure is for localhost; --cert-dir DIR names"
                " the authority of a certificate"
            )

    def repository(
        self, reference: Reference, place: Location, actions: str, mount_from: Sequence[str] = ()
    ) -> Repository:
        """A repository to speak to; its registry is to be closed.

        Args:
            reference: what the user named; its registry gets the user's credentials.
            place: where it is.
            actions: `pull` or `pull,push`.
            mount_from: other repositories there, to be read.
        """
        is_named = place.registry == reference.registry

        def find() -> Credentials | None:
            if is_named and self.credentials is not None:
                return self.credentials
            return find_credentials(place.registry, place.repository, self.authfile)

        scopes = [f"repository:{place.repository}:{actions}"]
        scopes += [f"repository:{name}:pull" for name in mount_from]
        registry = Registry(
            place.registry,
            scopes,
            find,
            self.patience,
            cert_dir=self.cert_dir if is_named else None,
            insecure=place.insecure,
        )
        return Repository(registry, place.repository)


class Repository(NamedTuple):
    """A repository of a registry."""

    registry: Registry
    name: str

    async def blob_url(self, digest: str) -> httpx.URL:
        """Where a blob is."""
        return await self.registry.url(f"{self.name}/blobs/{digest}")

    async def manifest_url(self, version: str) -> httpx.URL:
        """Where a manifest is, by tag or digest."""
        return await self.registry.url(f"{self.name}/manifests/{version}")

    async def uploads_url(self) -> httpx.URL:
        """Where uploads start."""
        return await self.registry.url(f"{self.name}/blobs/uploads/")

    def __str__(self) -> str:
        return f"{self.registry.name}/{self.name}"
