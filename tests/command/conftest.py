"""Every test of the command has its own runtime directory and log, so that none sees another's
mounts.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerstore.store import Store
from overlayfs_py import journal, registry
from tests.command.command import run


@pytest.fixture(autouse=True)
def runtime(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runtime directory; the environment of commands that are started names it too."""
    place = tmp_path_factory.mktemp("run")
    monkeypatch.setenv(registry.ENVIRONMENT, str(place))
    monkeypatch.setenv(journal.ENVIRONMENT, str(place / "log"))
    return place


def _tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            if name.endswith("/"):
                entry.type = tarfile.DIRTYPE
                entry.mode = 0o755
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A store with the images `app` and `other`, and a mountpoint."""
    monkeypatch.setenv("LAYERSTORE_ROOT", str(tmp_path / "store"))
    with Store.open(create=True) as store:
        archive = _tar(tmp_path / "app.tar", {"etc/": b"", "etc/hosts": b"one", "file": b"app"})
        store.import_image(f"tar:{archive}", "app")
        archive = _tar(tmp_path / "other.tar", {"other": b"other"})
        store.import_image(f"tar:{archive}", "other")
    (tmp_path / "m").mkdir()
    yield tmp_path
    if os.path.ismount(tmp_path / "m"):
        run("umount", "--lazy", str(tmp_path / "m"))
