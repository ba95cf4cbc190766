"""A real image looks the same whether the compiled lane answers or Python."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from overlayfs_py.wire.lane import compiled
from tests.images.conftest import Ours, archive
from tests.images.trees import differences, read

IMAGES = ("odd", "debian")


def listings(top: Path) -> Iterator[tuple[str, list[tuple[str, int, bool, bool, bool]]]]:
    """Every directory below `top`, with its rows: name, d_ino, what d_type says."""
    for directory, names, _ in os.walk(top):
        names.sort()
        with os.scandir(directory) as entries:
            rows = [
                (
                    entry.name,
                    entry.inode(),
                    entry.is_dir(follow_symlinks=False),
                    entry.is_file(follow_symlinks=False),
                    entry.is_symlink(),
                )
                for entry in entries
            ]
        # The order is that of hashes, of which the lane has another.
        yield os.path.relpath(directory, top), sorted(rows)


@pytest.mark.slow
@pytest.mark.skipif(compiled() is None, reason="no compiled lane")
@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("writable", [False, True], ids=["read-only", "writable"])
def test_an_image_is_the_same_with_the_lane_and_without(
    name: str, writable: bool, ours: Ours, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours.layerstore("import", f"oci-archive:{archive(name)}", "--tag", name)
    options = ["--name", "lane"] if writable else ["--ro"]
    laned = ours.mount(name, *options)
    with_lane, rows = read(laned), list(listings(laned))
    ours.unmount(laned)
    monkeypatch.setenv("OVERLAYFS_PY_PURE", "1")
    pure = ours.mount(name, *options)
    assert differences(with_lane, read(pure)) == []
    assert rows == list(listings(pure))
