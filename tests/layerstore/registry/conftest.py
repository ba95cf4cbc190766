"""Registries for the tests, and a user without any configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerstore.registry.access import Access
from layerstore.registry.patience import Patience
from tests.layerstore.chunked import zstd_chunked
from tests.layerstore.registry.partial import BEFORE, pulled, served_as
from tests.layerstore.registry.served import Served, serving

HASTE = Patience(timeout_s=20, attempts=2, wait_s=0.01)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of nobody; the machine's own configuration is not read."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(home / "registries.conf"))
    return home


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def served() -> Iterator[Served]:
    """A registry that can be told to misbehave."""
    with serving() as it:
        yield it


@pytest.fixture
def access() -> Access:
    """Without TLS; it tries again soon, and waits as long as a busy machine may need."""
    return Access(insecure=True, patience=Patience(timeout_s=30, attempts=3, wait_s=0.01))


@pytest.fixture
def before(served: Served, root: Path, access: Access) -> None:
    """A store that has the image before."""
    served_as(served, "before", BEFORE, zstd_chunked)
    pulled(root, served, "before", access)
    assert not served.sent("range")  # nothing can be left out
    served.sent_bytes = 0


@pytest.fixture
def hasty(access: Access) -> Access:
    """It tries again only once."""
    return dataclasses.replace(access, patience=HASTE)


@pytest.fixture
def impatient(hasty: Access) -> Access:
    """It waits half a second for a registry that stalls."""
    return dataclasses.replace(hasty, patience=dataclasses.replace(HASTE, timeout_s=0.5))
