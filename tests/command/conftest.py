"""Every test of the command has its own runtime directory and log, so that none sees another's
mounts.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from overlayfs_py import journal, registry


@pytest.fixture(autouse=True)
def runtime(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runtime directory; the environment of commands that are started names it too."""
    place = tmp_path_factory.mktemp("run")
    monkeypatch.setenv(registry.ENVIRONMENT, str(place))
    monkeypatch.setenv(journal.ENVIRONMENT, str(place / "log"))
    return place
