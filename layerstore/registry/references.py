"""References to images in registries, as skopeo and podman spell them. Pure functions.

    [docker://][HOST[:PORT]/]REPOSITORY[:TAG][@sha256:DIGEST]

Source of the grammar and of what a short name stands for: the distribution project's `reference`
package. A name without a host is one on Docker Hub, docker.io, where a name of one component is
below `library/`; without tag and digest the tag is `latest`. With both, the digest decides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from layerstore import digests
from layerstore.errors import StoreError, show

SCHEME = "docker://"
DOCKER_HUB = "docker.io"
REPOSITORY_MAX = 255
_PORT_MAX = 65535

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(
    rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::(?P<port>[0-9]{{1,5}}))?", re.ASCII
)
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reference:
    """An image in a registry.

    `registry`: host and port as written, `docker.io` for Docker Hub. At least one of `tag` and
    `digest` is there.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    @property
    def version(self) -> str:
        """What to ask the registry for: the digest if there is one, else the tag."""
        version = self.digest or self.tag
        assert version is not None
        return version

    @property
    def tagged(self) -> str | None:
        """NAME:TAG, None for a reference by digest only."""
        return f"{self.name}:{self.tag}" if self.tag is not None else None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{self.name}{tag}{digest}"


def parse_reference(text: str) -> Reference:
    """Parse a reference, with or without `docker://` before it.

    Raises:
        StoreError: it is none.
    """
    rest = text.removeprefix(SCHEME)
    rest, at, digest = rest.partition("@")
    if at and digests.is_other(digest):
        raise StoreError(f"{show(text)}: the digest is not SHA-256, which is all that is supported")
    if at and not digests.is_sha256(digest):
        raise StoreError(f"{show(text)}: after the @ comes sha256: and 64 hexadecimal digits")
    path, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        path, colon, tag = rest, "", ""
    if colon and _TAG.fullmatch(tag) is None:
        raise StoreError(f"{show(text)}: {show(tag)!r} is no tag: letters, digits, and _ . -")
    registry, repository = _split(path)
    if not _is_host(registry):
        raise StoreError(f"{show(text)}: {show(registry)!r} is no registry, which is HOST[:PORT]")
    if len(repository) > REPOSITORY_MAX or _REPOSITORY.fullmatch(repository) is None:
        lower = _REPOSITORY.fullmatch(repository.lower()) is not None
        hint = ": it has capital letters" if lower and repository != repository.lower() else ""
        raise StoreError(
            f"{show(text)}: {show(repository)!r} names no repository{hint}; references are"
            " [HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]"
        )
    if not at and not colon:
        tag = "latest"
    return Reference(registry, repository, tag or None, digest or None)


def _split(path: str) -> tuple[str, str]:
    """Registry and repository; a first component is a host if it looks like nothing else."""
    first, slash, rest = path.partition("/")
    if not slash or not (
        "." in first or ":" in first or first == "localhost" or first != first.lower()
    ):
        first, rest = DOCKER_HUB, path
    if first in ("index.docker.io", "registry-1.docker.io"):
        first = DOCKER_HUB
    if first == DOCKER_HUB and "/" not in rest:
        rest = f"library/{rest}"
    return first, rest


def _is_host(text: str) -> bool:
    match = _HOST.fullmatch(text)
    return match is not None and (match["port"] is None or 0 < int(match["port"]) <= _PORT_MAX)
