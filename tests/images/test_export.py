"""What goes out is what came in, as skopeo, podman and umoci read it."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.images.conftest import Engines, Ours, archive, run
from tests.images.test_unpacked import unpacked
from tests.images.trees import differences, read

SMALL = ("odd", "podman", "debian-hello")
FAMILY = ("debian-a", "debian-b", "python-a", "python-b", "django", "node", "gcc")


def at_hand(name: str) -> Path:
    """The archive of an image; one of the family only if somebody has built it, which takes long."""
    if name in SMALL:
        return archive(name)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    found = sorted((cache / "overlayfs-py/images").glob(f"family-{name}-*.tar"))
    if not found:
        pytest.skip(f"tools/images family-{name} has not been run")
    return found[-1]


def manifest_of(source: str | Path) -> str:
    """The digest of an image's manifest, by skopeo."""
    return (
        "sha256:" + hashlib.sha256(run("skopeo", "inspect", "--raw", source).encode()).hexdigest()
    )


def config_of(source: str | Path) -> tuple[str, Any]:
    """The id of an image and its diff ids, by skopeo."""
    raw = run("skopeo", "inspect", "--config", "--raw", source)
    diff_ids = json.loads(raw)["rootfs"]["diff_ids"]
    return "sha256:" + hashlib.sha256(raw.encode()).hexdigest(), diff_ids


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SMALL, *FAMILY])
def test_round_trip(name: str, ours: Ours, tmp_path: Path) -> None:
    source = f"oci-archive:{at_hand(name)}"
    ours.layerstore("import", source, "--tag", "x")
    plain = f"oci-archive:{tmp_path}/plain.tar"
    ours.layerstore("export", "x", plain, "--compress", "none")
    assert config_of(plain) == config_of(source)
    (tmp_path / "plain.tar").unlink()
    ours.layerstore("import", source, "--keep-blobs")
    kept = f"oci:{tmp_path}/kept"
    ours.layerstore("export", "x", kept)
    assert config_of(kept) == config_of(source)
    assert manifest_of(kept) == manifest_of(source)
    # skopeo compares every blob with its digest.
    run("skopeo", "--insecure-policy", "copy", "-q", kept, f"dir:{tmp_path}/copied")
    # And what we wrote comes in again as the same.
    (tmp_path / "again").mkdir()
    again = Ours(tmp_path / "again")
    assert again.layerstore("import", kept).split()[0] == config_of(source)[0]
    assert again.layerstore("fsck", "--content") == "nothing wrong\n"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
@pytest.mark.parametrize("method", [None, "gzip", "zstd"])
def test_podman_loads_it(
    form: str, method: str | None, ours: Ours, engines: Engines, tmp_path: Path
) -> None:
    identity = ours.layerstore("import", f"oci-archive:{archive('odd')}").split()[0]
    options = ["--compress", method] if method else []
    ours.layerstore("export", identity, f"{form}:{tmp_path}/image.tar:localhost/x:1", *options)
    podman = engines.make("podman")
    podman("load", "-q", "-i", tmp_path / "image.tar")
    assert podman("image", "inspect", "--format={{.Id}}", "localhost/x:1").strip() == identity[7:]
    theirs = read(podman("image", "mount", identity[7:]).strip())
    found = read(ours.mount(identity, "--ro"))
    podman("image", "umount", identity[7:])
    found.pop(b"")
    theirs.pop(b"")
    assert differences(found, theirs, ignored=frozenset({"nlink"})) == []


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gzip", "zstd", "none"])
def test_umoci_reads_a_layout_that_has_images(ours: Ours, tmp_path: Path, method: str) -> None:
    layout = tmp_path / "layout"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:theirs")
    ours.layerstore("import", f"oci-archive:{archive('odd')}", "--tag", "odd")
    ours.layerstore("export", "odd", f"oci:{layout}:ours", "--compress", method)
    assert run("umoci", "list", "--layout", layout).split() == ["theirs", "ours"]
    run("umoci", "stat", "--image", f"{layout}:ours")
    run("umoci", "gc", "--layout", layout)
    if method != "zstd":  # Debian's umoci cannot unpack that
        run("umoci", "unpack", "--image", f"{layout}:ours", tmp_path / "bundle")
        theirs = read(unpacked(archive("odd"), tmp_path / "original"))
        assert differences(read(tmp_path / "bundle/rootfs"), theirs) == []
    run("skopeo", "--insecure-policy", "copy", "-q", f"oci:{layout}:ours", f"dir:{tmp_path}/copied")
    assert manifest_of(f"oci:{layout}:theirs").startswith("sha256:")


@pytest.mark.slow
def test_dockers_manifest_survives(ours: Ours, tmp_path: Path) -> None:
    """skopeo's dir: keeps Docker's types, as registries do."""
    source = f"dir:{tmp_path}/docker"
    run(
        *("skopeo", "--insecure-policy", "copy", "-q", "--format", "v2s2"),
        *(f"oci-archive:{archive('odd')}", source),
    )
    ours.layerstore("import", source, "--tag", "x", "--keep-blobs")
    ours.layerstore("export", "x", f"oci:{tmp_path}/layout")
    assert manifest_of(f"oci:{tmp_path}/layout") == manifest_of(source)
    copied = f"docker-archive:{tmp_path}/copied.tar"
    run("skopeo", "--insecure-policy", "copy", "-q", f"oci:{tmp_path}/layout", copied)


def test_root_filesystems(ours: Ours, tmp_path: Path) -> None:
    theirs = read(unpacked(archive("odd"), tmp_path))
    ours.layerstore("import", f"oci-archive:{archive('odd')}", "--tag", "odd")
    ours.layerstore("export", "odd", f"dir:{tmp_path}/tree")
    assert differences(read(tmp_path / "tree"), theirs) == []
    ours.layerstore("export", "odd", f"tar:{tmp_path}/root.tar")
    (tmp_path / "by-tar").mkdir()
    run(
        *("tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-p"),
        *("-C", tmp_path / "by-tar", "-xf", tmp_path / "root.tar"),
    )
    assert differences(read(tmp_path / "by-tar"), theirs) == []
    with tarfile.open(tmp_path / "root.tar") as whole:
        assert len(whole.getmembers()) == len(theirs)
