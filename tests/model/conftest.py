"""Where layers lie, and which seed the runs have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model.mounted import mount, unmount


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """That of the whole session, which its header prints."""
    return int(request.config.getoption("hypothesis_seed"))


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[str]:
    """An empty directory on tmpfs: layers there cost no disk."""
    directory = tmp_path / "scratch"
    directory.mkdir()
    mount(b"scratch", os.fsencode(directory), b"tmpfs", 0, b"mode=755")
    yield str(directory)
    unmount(os.fsencode(directory))
