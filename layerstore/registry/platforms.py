"""Platforms: `os/arch[/variant]`, and which image of an index runs on one. Pure functions.

Source: OCI image spec, image-index.md, "platform"; the order of variants is containerd's.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from layerstore.errors import StoreError, show
from layerstore.oci.image import host_architecture

_WORD = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_ALIASES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm", "i386": "386"}
_OLDER = {
    ("arm", "v8"): ["v8", "v7", "v6", "v5"],
    ("arm", "v7"): ["v7", "v6", "v5"],
    ("arm", "v6"): ["v6", "v5"],
}
_PLAIN = {"arm64": "v8", "arm": "v7", "amd64": "v1"}
"""The variant that an architecture without one means."""


class Platform(NamedTuple):
    """What an image is to run on; without a variant any is good enough, the plain one best."""

    os: str
    architecture: str
    variant: str | None = None

    def __str__(self) -> str:
        return "/".join(filter(None, self))


def parse_platform(text: str) -> Platform:
    """Parse `os/arch[/variant]`.

    Raises:
        StoreError: it is something else.
    """
    parts = text.split("/")
    if not 2 <= len(parts) <= 3 or not all(_WORD.fullmatch(part) for part in parts):
        raise StoreError(f"{show(text)}: a platform is OS/ARCH[/VARIANT], as in linux/arm64/v8")
    system, architecture, *variant = (part.lower() for part in parts)
    return Platform(system, _ALIASES.get(architecture, architecture), *variant)


def host_platform() -> Platform:
    """This machine's."""
    variant = {"armv7l": "v7", "armv6l": "v6"}.get(platform.machine())
    return Platform("linux", host_architecture(), variant)


def choose(wanted: Platform, offered: Sequence[dict[str, Any]], label: str) -> dict[str, Any]:
    """The descriptor of the image for a platform, the best and among equals the first.

    Args:
        wanted: the platform.
        offered: descriptors of an index.
        label: what to call the index in a message.

    Raises:
        StoreError: none runs there.
    """
    found: list[tuple[int, dict[str, Any]]] = []
    have: list[str] = []
    for descriptor in offered:
        system = descriptor.get("platform")
        if not isinstance(system, dict):
            continue
        fields = [system.get("os"), system.get("architecture"), system.get("variant") or None]
        if not all(isinstance(field, str) for field in fields[:2]) or fields[0] == "unknown":
            continue  # attestations are of platform unknown/unknown
        it = Platform(str(fields[0]), str(fields[1]), str(fields[2]) if fields[2] else None)
        have.append(str(it))
        rank = fitness(wanted, it)
        if rank is not None:
            found.append((rank, descriptor))
    if not found:
        raise StoreError(
            f"{label}: no image for {wanted}; it has {show(', '.join(dict.fromkeys(have)) or 'none')}"
        )
    return min(found, key=lambda pair: pair[0])[1]


def fitness(wanted: Platform, offered: Platform) -> int | None:
    """How well an image made for `offered` runs on `wanted`: 0 is best, None not at all."""
    if wanted[:2] != offered[:2]:
        return None
    plain = _PLAIN.get(wanted.architecture, "")
    variant = offered.variant or plain
    if wanted.variant is None:
        return 0 if variant == plain else 1
    order = _OLDER.get((wanted.architecture, wanted.variant), [wanted.variant])
    return order.index(variant) if variant in order else None
