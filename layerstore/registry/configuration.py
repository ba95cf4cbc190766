"""Where an image is really fetched from: locations and mirrors. Blocking reads of small files.

Source: containers-registries.conf(5), version 2, and containers-registries.conf.d(5). Short names
and search registries are not looked up: a name without a host is one on Docker Hub.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from layerstore.errors import StoreError, show
from layerstore.registry.references import SCHEME, Reference, parse_reference

_SYSTEM = "/etc/containers/registries.conf"


class Location(NamedTuple):
    """A place that may have an image: a repository, and whether TLS may be done without there."""

    registry: str
    repository: str
    insecure: bool


def read_configuration() -> list[dict[str, Any]]:
    """The `[[registry]]` tables of $CONTAINERS_REGISTRIES_CONF, else of the user's file, else of
    the system's, and of the directories `registries.conf.d`; a later one replaces an earlier one
    with the same prefix.

    Raises:
        StoreError: a file is not what it should be.
    """
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    users = os.path.join(home, "containers/registries.conf")
    named = os.environ.get("CONTAINERS_REGISTRIES_CONF")
    first = named or (users if os.path.exists(users) else _SYSTEM)
    files = [first]
    for directory in (f"{_SYSTEM}.d", f"{users}.d"):
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            continue
        files += [os.path.join(directory, name) for name in names if name.endswith(".conf")]
    tables: dict[str, dict[str, Any]] = {}
    for path in files:
        for table in _read(path):
            tables[_prefix(table)] = table
    return list(tables.values())


def _read(path: str) -> list[dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(f"{show(path)}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{show(path)}: is not valid TOML: {show(str(error))}") from None
    tables = content.get("registry", [])
    if not _is_list_of_tables(tables):
        raise StoreError(f"{show(path)}: registry is not a list of tables ([[registry]])")
    for table in tables:
        mirrors = table.get("mirror", [])
        if not _is_list_of_tables(mirrors):
            raise StoreError(f"{show(path)}: mirror is not a list of tables ([[registry.mirror]])")
        for it in (table, *mirrors):
            for key in ("prefix", "location", "pull-from-mirror"):
                if not isinstance(it.get(key, ""), str):
                    raise StoreError(f"{show(path)}: {key} is not a string")
        if not _prefix(table):
            raise StoreError(f"{show(path)}: a [[registry]] has neither prefix nor location")
        if not all(mirror.get("location") for mirror in mirrors):
            raise StoreError(f"{show(path)}: a mirror of {show(_prefix(table))} has no location")
    return list(tables)


def _is_list_of_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _prefix(table: dict[str, Any]) -> str:
    prefix: str = table.get("prefix") or table.get("location") or ""
    return prefix


def locations(
    reference: Reference,
    tables: Iterable[dict[str, Any]] = (),
    mirrors: Sequence[str] = (),
    *,
    insecure: bool = False,
) -> list[Location]:
    """Where to try to pull an image from, in this order.

    Args:
        reference: the image.
        tables: as from `read_configuration`.
        mirrors: `HOST[:PORT][/PATH]`, each in the place of the reference's registry.
        insecure: do without TLS, where a registry is on this machine.

    Raises:
        StoreError: the configuration forbids the image, or leads to what is no repository.
    """
    found = [
        _moved(mirror.removeprefix(SCHEME).rstrip("/"), f"/{reference.repository}", insecure)
        for mirror in mirrors
    ]
    table, length = _table_for(reference, tables)
    if table is None:
        return [*found, Location(reference.registry, reference.repository, insecure)]
    if table.get("blocked") is True:
        raise StoreError(f"{reference}: registries.conf forbids to pull from {_prefix(table)}")
    rest = reference.name[length:]
    for mirror in table.get("mirror", []):
        if _applies(mirror, table, by_digest=reference.digest is not None):
            is_insecure = insecure or mirror.get("insecure") is True
            found.append(_moved(mirror["location"], rest, is_insecure))
    # A prefix with a wildcard says nothing about a location.
    location = table.get("location") or reference.name[:length]
    found.append(_moved(location, rest, insecure or table.get("insecure") is True))
    return found


def is_insecure(reference: Reference, tables: Iterable[dict[str, Any]]) -> bool:
    """Whether the configuration says that TLS may be done without for an image."""
    table, _ = _table_for(reference, tables)
    return table is not None and table.get("insecure") is True


def _applies(mirror: dict[str, Any], table: dict[str, Any], *, by_digest: bool) -> bool:
    when = mirror.get("pull-from-mirror") or "all"
    if table.get("mirror-by-digest-only") is True:
        when = "digest-only"
    return when == "all" or (when == "digest-only") == by_digest


def _moved(location: str, rest: str, insecure: bool) -> Location:
    registry, _, path = f"{location}{rest}".partition("/")
    try:
        # With a port it is a host, however short its name is, and not a part of Docker Hub.
        has_port = re.search(r":[0-9]+$", registry) is not None
        moved = parse_reference(f"{registry if has_port else f'{registry}:443'}/{path}")
    except StoreError:
        raise StoreError(
            f"{show(location)}{rest}: is no place for an image: mirrors and locations are"
            " HOST[:PORT][/PATH]"
        ) from None
    return Location(registry, moved.repository, insecure)


def _table_for(
    reference: Reference, tables: Iterable[dict[str, Any]]
) -> tuple[dict[str, Any] | None, int]:
    """The table with the longest prefix of a reference, and how much of its name that is."""
    best: tuple[dict[str, Any] | None, int] = (None, 0)
    for table in tables:
        length = _match_length(str(reference), reference.registry, _prefix(table))
        if length > best[1]:
            best = table, min(length, len(reference.name))
    return best


def _match_length(text: str, registry: str, prefix: str) -> int:
    """How much of a reference a prefix is; 0: it is none of it."""
    if prefix.startswith("*."):
        host = registry.partition(":")[0]
        suffix = prefix[1:]
        return len(registry) if "/" not in suffix and host.endswith(suffix) else 0
    if not text.startswith(prefix):
        return 0
    following = text[len(prefix) : len(prefix) + 1]
    separators = "/:@" if "/" in prefix else "/"
    return len(prefix) if following == "" or following in separators else 0
