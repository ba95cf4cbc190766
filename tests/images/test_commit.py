"""What is committed is an image to podman as well."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from tests.images.conftest import CONTAINER, Engines, Ours, archive, run
from tests.images.trees import differences, read


def change(root: Path) -> None:
    """What package managers and people do to a Debian."""
    (root / "etc/motd").write_text("committed\n")
    shutil.rmtree(root / "usr/share/doc")
    (root / "usr/share/doc").mkdir()
    (root / "usr/share/doc/new").write_text("new\n")
    (root / "opt").rename(root / "optional")
    (root / "etc/skel").rename(root / "var/skel")
    os.link(root / "usr/bin/env", root / "usr/bin/env-again")
    os.chmod(root / "usr/bin/perl", 0o4711)
    os.chown(root / "optional", 12, 34)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (root / "etc/issue").unlink()
    (root / "etc/issue").mkdir()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["fuse", "kernel"])
def test_podman_runs_what_was_committed(
    engine: str, ours: Ours, engines: Engines, tmp_path: Path
) -> None:
    ours.layerstore("import", f"oci-archive:{archive('debian')}", "--tag", "base")
    mountpoint = ours.mount("base", "--name", "mine", f"--engine={engine}")
    change(mountpoint)
    expected = read(mountpoint)
    if engine == "fuse":
        ours.overlayfs("commit", mountpoint, "--tag", "made", "-c", "CMD cat /etc/motd")
        ours.unmount(mountpoint)
    else:
        ours.unmount(mountpoint)
        ours.layerstore("commit", "--upper", "mine", "--tag", "made", "-c", "CMD cat /etc/motd")
    ignored = frozenset({"nlink"})
    assert differences(read(ours.mount("made", "--ro")), expected, ignored) == []
    ours.layerstore("checkout", "made", tmp_path / "out")
    assert differences(read(tmp_path / "out"), expected, ignored) == []
    made = f"oci:{tmp_path}/layout:made"
    ours.layerstore("export", "made", made)
    assert len(json.loads(run("skopeo", "inspect", made))["Layers"]) == 2
    podman = engines.make("podman")
    identity = podman("pull", "-q", made).split()[-1]
    assert podman("run", "--rm", *CONTAINER, identity) == "committed\n"
    theirs = read(podman("image", "mount", identity).strip())
    podman("image", "umount", identity)
    # podman makes the root directory itself.
    expected.pop(b"")
    theirs.pop(b"")
    assert differences(theirs, expected, ignored) == []
