"""Credentials: given, from podman's and docker's files, or from a credential helper. Blocking.

Sources: containers-auth.json(5); docker's config.json; github.com/docker/docker-credential-helpers.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from layerstore.errors import StoreError, show
from layerstore.registry.references import DOCKER_HUB

_HELPER_SECONDS = 60
_HELPER_NAME = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_HUB_KEYS = ("index.docker.io", "registry-1.docker.io")
_HUB_SERVER = "https://index.docker.io/v1/"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user's.

    `is_identity_token`: the secret is to be exchanged for a token (OAuth 2), not a password.
    `source`: where they come from, for messages.
    """

    user: str
    secret: str = field(repr=False)
    source: str
    is_identity_token: bool = False


def parse_credentials(text: str) -> Credentials:
    """Parse `USER[:PASSWORD]`.

    Raises:
        StoreError: there is no user in it.
    """
    user, _, password = text.partition(":")
    if not user:
        raise StoreError("credentials are USER[:PASSWORD], and the user is missing")
    return Credentials(user, password, "the command line")


def find_credentials(
    registry: str, repository: str, authfile: str | None = None
) -> Credentials | None:
    """What the files know for a repository.

    Args:
        registry: as in a `Reference`.
        repository: as in a `Reference`.
        authfile: look into this file only; None: $REGISTRY_AUTH_FILE, else the usual files.

    Raises:
        StoreError: a file or a helper cannot be used.
    """
    named = authfile or os.environ.get("REGISTRY_AUTH_FILE") or None
    if named is not None:
        return _from_file(named, registry, repository, must_exist=True)
    for path in _usual_files():
        found = _from_file(path, registry, repository)
        if found is not None:
            return found
    return None


def _usual_files() -> Iterator[str]:
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/containers/{os.getuid()}"
    below = "containers/auth.json" if os.environ.get("XDG_RUNTIME_DIR") else "auth.json"
    yield os.path.join(runtime, below)
    configuration = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    yield os.path.join(configuration, "containers/auth.json")
    docker = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    yield os.path.join(docker, "config.json")


def _from_file(
    path: str, registry: str, repository: str, *, must_exist: bool = False
) -> Credentials | None:
    try:
        with open(path, "rb") as file:
            content = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        if must_exist:
            raise StoreError(f"{show(path)}: there is no such file with credentials") from None
        return None
    except OSError as error:
        raise StoreError(f"{show(path)}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise StoreError(f"{show(path)}: is not valid JSON") from None
    if not isinstance(content, dict):
        raise StoreError(f"{show(path)}: is not a JSON object")
    helper = _object(content, "credHelpers", path).get(registry)
    if helper is not None:
        return _from_helper(helper, registry, path)
    store = content.get("credsStore")
    if store:
        found = _from_helper(store, registry, path)
        if found is not None:
            return found
    return _from_auths(_object(content, "auths", path), registry, repository, path)


def _object(content: dict[str, Any], key: str, path: str) -> dict[str, Any]:
    value = content.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise StoreError(f"{show(path)}: {key} is not a JSON object")
    return value


def _from_auths(
    auths: dict[str, Any], registry: str, repository: str, path: str
) -> Credentials | None:
    """The entry of the repository, of what is above it, or of the registry."""
    known = {_normal_key(key): value for key, value in auths.items()}
    name = f"{registry}/{repository}"
    while True:
        found = _entry(known.get(name), name, path)
        if found is not None:
            return found
        if name == registry:
            return None
        name = name.rpartition("/")[0]


def _normal_key(key: str) -> str:
    """`https://index.docker.io/v1/`, as docker writes it, is `docker.io`."""
    bare = key.removeprefix("https://").removeprefix("http://")
    host, _, rest = bare.partition("/")
    if host in _HUB_KEYS:
        host = DOCKER_HUB
    if bare != key or rest in ("v1/", "v2/", "v1", "v2", ""):
        return host
    return f"{host}/{rest}"


def _entry(entry: Any, name: str, path: str) -> Credentials | None:
    if not isinstance(entry, dict):
        return None
    source = show(path)
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Credentials("<token>", token, source, is_identity_token=True)
    encoded = entry.get("auth")
    if not isinstance(encoded, str) or not encoded:
        return None
    try:
        user, colon, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        user, colon, secret = "", "", ""
    if not user or not colon:
        raise StoreError(f"{source}: the auth of {show(name)} is not USER:PASSWORD in base64")
    # Docker pads what it writes.
    return Credentials(user, secret.rstrip("\0"), source)


def _from_helper(helper: Any, registry: str, path: str) -> Credentials | None:
    if not isinstance(helper, str) or _HELPER_NAME.fullmatch(helper) is None:
        raise StoreError(f"{show(path)}: {show(str(helper))!r} names no credential helper")
    for server in (registry, _HUB_SERVER) if registry == DOCKER_HUB else (registry,):
        found = _ask_helper(f"docker-credential-{helper}", server, path)
        if found is not None:
            return found
    return None


def _ask_helper(program: str, server: str, path: str) -> Credentials | None:
    try:
        done = subprocess.run(
            [program, "get"],
            input=server.encode(),
            capture_output=True,
            timeout=_HELPER_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise StoreError(
            f"{show(path)}: its credential helper {program} is not installed"
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = error.strerror if isinstance(error, OSError) else "no answer"
        raise StoreError(f"{program}: {reason}") from None
    if done.returncode != 0:
        said = (done.stdout + done.stderr).decode(errors="replace").strip()
        if "credentials not found" in said:
            return None
        raise StoreError(f"{program}: failed for {server}: {show(said)[:200] or 'no reason given'}")
    try:
        answer = json.loads(done.stdout)
        user, secret = answer["Username"], answer["Secret"]
    except (ValueError, RecursionError, KeyError, TypeError):
        user = secret = None
    if not isinstance(user, str) or not isinstance(secret, str):
        raise StoreError(f"{program}: its answer for {server} is not JSON with Username and Secret")
    if not secret:
        return None
    return Credentials(user, secret, program, is_identity_token=user == "<token>")
