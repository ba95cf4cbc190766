"""Repair from a registry: only what is needed is downloaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerstore.cli import run
from layerstore.registry.access import Access
from layerstore.registry.images import pull
from layerstore.store import Store
from tests.layerstore.archives import digest_of, layout_of
from tests.layerstore.registry.served import Served
from tests.layerstore.stores import BASE, TOP, problems


def test_a_lost_object_comes_back(
    served: Served,
    access: Access,
    root: Path,
    home: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    served.add(layout_of([BASE, TOP], compress=""), "1")
    reference = f"{served.name}/a:1"
    with Store.open(str(root), create=True) as store:
        pull(store, reference, access=access)
    lost = digest_of(b"N" * 6000)  # etc/new, in the layer on top only
    os.unlink(root / "objects" / lost[7:9] / lost[9:])
    assert len(problems(root)) > 0
    served.requests.clear()
    # Repair has no options for registries: it is configured as it is for import.
    (home / "registries.conf").write_text(
        f'[[registry]]\nlocation = "{served.name}"\ninsecure = true\n'
    )
    command = ["--root", str(root), "fsck", "--content", "--repair-from", f"docker://{reference}"]
    assert run(command) == 0
    assert capfd.readouterr().err == ""
    assert problems(root) == []
    asked = [path for path in served.paths() if "/blobs/" in path]
    assert len(asked) == 2  # the config, and the one layer
    assert asked[1].endswith(digest_of(TOP))
