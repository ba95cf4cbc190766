"""Manifests and configs from a registry, each compared with its digest.

Sources: OCI distribution spec, "Pulling manifests"; OCI image spec, image-index.md.
"""

from __future__ import annotations

from typing import Any

from layerstore import digests
from layerstore.errors import show
from layerstore.oci.image import INDEX_TYPES, MANIFEST_TYPES, parse_object
from layerstore.registry import platforms
from layerstore.registry.access import Repository
from layerstore.registry.client import Answer
from layerstore.registry.errors import NotThere, RegistryError
from layerstore.registry.platforms import Platform

_INDEX_DEPTH_MAX = 8
"""Indexes within indexes; a registry that answers with what it likes could go on for ever."""


async def fetch_manifest(
    repository: Repository, version: str, platform: Platform
) -> tuple[bytes, str]:
    """The manifest of an image, and its digest.

    Args:
        repository: where it is.
        version: its tag or its digest, or those of an index.
        platform: which one of an index.

    Raises:
        NotThere: there is no such tag or digest.
        RegistryError: it is not what it should be, or of no image.
    """
    size: int | None = None
    for _ in range(_INDEX_DEPTH_MAX):
        label = f"{repository}{'@' if ':' in version else ':'}{version}"
        data, digest, kind = await _fetch(repository, version, label)
        if size is not None and len(data) != size:
            raise RegistryError(f"{label}: has {len(data)} bytes, the index says {size}")
        content = parse_object(data, label)
        if kind in MANIFEST_TYPES:
            return data, digest
        chosen = _choose(content, platform, label)
        version, size = chosen["digest"], chosen["size"]
    raise RegistryError(f"{repository}: more than {_INDEX_DEPTH_MAX} image indexes in each other")


async def _fetch(repository: Repository, version: str, label: str) -> tuple[bytes, str, str]:
    """What is there, its digest and its type."""
    answer = await repository.registry.request(
        "GET",
        await repository.manifest_url(version),
        headers={"Accept": ", ".join([*MANIFEST_TYPES, *INDEX_TYPES])},
    )
    found = digests.of_bytes(answer.content)
    said = answer.headers.get("Docker-Content-Digest", found)
    wanted = version if ":" in version else found if digests.is_other(said) else said
    if wanted != found:
        raise RegistryError(f"{label}: is damaged: its digest is {found}, not {show(wanted)}")
    return answer.content, found, _kind(answer, label)


def _kind(answer: Answer, label: str) -> str:
    """The media type, on which the header and the content must agree: who reads a manifest as an
    index sees another image than who does not."""
    said = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    content = parse_object(answer.content, label) if _may_be_json(said) else {}
    inside = content.get("mediaType")
    kind = inside if inside is not None else said
    if kind not in (*MANIFEST_TYPES, *INDEX_TYPES):
        hint = ""
        if content.get("schemaVersion") == 1 or "manifest.v1" in str(kind):
            hint = " (Docker schema 1, which is no longer in use: push the image again)"
        raise RegistryError(
            f"{label}: is of type {show(str(kind))!r}, which is no image{hint}; known are OCI 1 and"
            " Docker schema 2"
        )
    if said in (*MANIFEST_TYPES, *INDEX_TYPES) and said != kind:
        raise RegistryError(f"{label}: is sent as {said}, but says that it is {kind}")
    if "layers" in content and "manifests" in content:
        raise RegistryError(f"{label}: has both layers and manifests: image or index?")
    return str(kind)


def _may_be_json(kind: str) -> bool:
    return kind.endswith("json") or kind in ("", "text/plain", "application/octet-stream")


def _choose(content: dict[str, Any], platform: Platform, label: str) -> dict[str, Any]:
    offered = content.get("manifests")
    chosen: dict[str, Any]
    if not isinstance(offered, list) or not all(isinstance(item, dict) for item in offered):
        raise RegistryError(f"{label}: has no list of manifests")
    if len(offered) == 1 and not isinstance(offered[0].get("platform"), dict):
        chosen = offered[0]
    else:
        chosen = platforms.choose(platform, offered, label)
    digest, size = chosen.get("digest"), chosen.get("size")
    if digests.is_other(digest):
        raise RegistryError(f"{label}: leads to {digest}, which is not SHA-256")
    if not digests.is_sha256(digest) or not isinstance(size, int):
        raise RegistryError(f"{label}: leads to a manifest without SHA-256 digest and size")
    return chosen


async def fetch_config(repository: Repository, manifest: dict[str, Any], label: str) -> bytes:
    """The config that a manifest names; its digest is checked where its content is.

    Raises:
        RegistryError: it is not to be had.
    """
    descriptor = manifest.get("config")
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    if not digests.is_sha256(digest):
        return b""  # the manifest is refused for it
    assert isinstance(digest, str)
    try:
        answer = await repository.registry.request("GET", await repository.blob_url(digest))
    except NotThere:
        raise NotThere(f"{label}: the config {digest} is missing in {repository}") from None
    return answer.content
