"""Names of images, named uppers and leases, as users write them. Pure functions.

Source of the grammar: the distribution project's `reference` package (docker and podman).
"""

from __future__ import annotations

import re

from layerstore.errors import StoreError, show

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_DOMAIN = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]+)?"
_NAME = rf"(?:{_DOMAIN}/)?{_COMPONENT}(?:/{_COMPONENT})*"
_REFERENCE = re.compile(rf"(?P<name>{_NAME})(?::(?P<tag>[\w][\w.-]{{0,127}}))?", re.ASCII)
_PLAIN = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}", re.ASCII)
_HEX = re.compile(r"(?:sha256:)?([0-9a-f]{1,64})")


def full_name(name: str) -> str:
    """`name` with its tag, `latest` if it has none.

    Raises:
        StoreError: it is no name of an image.
    """
    match = _REFERENCE.fullmatch(name)
    if match is None or len(name) > 512:
        hint = f"; {name.lower()} would be one" if _REFERENCE.fullmatch(name.lower()) else ""
        raise StoreError(f"{show(name)!r} is no name for an image, which is NAME[:TAG]{hint}")
    return f"{match['name']}:{match['tag'] or 'latest'}"


def id_digits(name: str) -> str | None:
    """The hexadecimal digits if `name` may be an image id or the start of one."""
    match = _HEX.fullmatch(name)
    return match[1] if match else None


def is_short_for(name: str, tag: str) -> bool:
    """Whether `name` (with its tag) is `tag` without its registry or the path before it:
    `debian:12` for `docker.io/library/debian:12`."""
    return tag.endswith("/" + name)


def check_upper_name(name: str) -> str:
    """`name` itself.

    Raises:
        StoreError: it cannot name an upper.
    """
    if _PLAIN.fullmatch(name) is None:
        raise StoreError(
            f"{show(name)!r} is no name for an upper: letters, digits, and _ . - after the first"
        )
    return name


def check_lease_name(name: str) -> str:
    """`name` itself.

    Raises:
        StoreError: it cannot name a lease.
    """
    if _PLAIN.fullmatch(name) is None:
        raise StoreError(
            f"{show(name)!r} is no name for a lease: letters, digits, and _ . - after the first"
        )
    return name
