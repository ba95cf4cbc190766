"""The kernel shows the tree of an image as the daemon does, and what is changed through one shows through the other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.images.conftest import Ours, archive
from tests.images.test_unpacked import IMAGES
from tests.images.trees import differences, read

pytestmark = [
    pytest.mark.slow,
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount EROFS"),
]


@pytest.mark.parametrize("name", IMAGES)
def test_both_engines_show_one_tree(name: str, ours: Ours) -> None:
    ours.layerstore("import", f"oci-archive:{archive(name)}", "--tag", name)
    by_daemon = read(ours.mount(name, "--ro"))
    assert differences(by_daemon, read(ours.mount(name, "--ro", "--engine=kernel"))) == []
    # With an upper, the root directory is merged, and the kernel counts no links of such.
    writable = read(ours.mount(name, "--name", "kept", "--engine=kernel"))
    by_daemon.pop(b""), writable.pop(b"")
    assert differences(by_daemon, writable) == []


def test_changes_go_between_the_engines(ours: Ours) -> None:
    ours.layerstore("import", f"oci-archive:{archive('debian-hello')}", "--tag", "hello")
    engines = ["kernel", "fuse"]
    trees = []
    for number, engine in enumerate(engines):
        place = ours.mount("hello", "--name", "kept", f"--engine={engine}")
        change(place, number)
        trees.append(read(place))
        ours.unmount(place)
        again = ours.mount("hello", "--name", "kept", f"--engine={engines[number - 1]}")
        # The kernel counts no links of merged directories.
        assert differences(trees[-1], read(again), frozenset({"nlink"})) == []
        ours.unmount(again)


def change(place: Path, number: int) -> None:
    """What package managers do, and what leaves redirects and files without data."""
    (place / "etc/motd").write_text(f"round {number}")
    (place / "usr/bin/env").chmod(0o700 + number)
    os.chown(place / "usr/bin/cat", number, number)
    (place / f"usr/share/dir{number}").mkdir()
    source = "doc" if number == 0 else f"doc{number - 1}"
    (place / "usr/share" / source).rename(place / f"usr/share/doc{number}")
    next(path for path in sorted((place / "bin/").iterdir()) if path.is_file()).unlink()
