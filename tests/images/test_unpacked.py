"""An image mounted by us is file by file what umoci unpacks and what podman mounts."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from tests.images.conftest import Engines, Ours, archive, run
from tests.images.trees import differences, read

IMAGES = ("odd", "podman", "debian-hello")


def unpacked(image: Path, place: Path) -> Path:
    """The root filesystem of an OCI archive, by umoci."""
    layout = place / "layout"
    with tarfile.open(image) as whole:
        whole.extractall(layout, filter="data")
    manifest = json.loads((layout / "index.json").read_bytes())["manifests"][0]
    tag = manifest.get("annotations", {}).get("org.opencontainers.image.ref.name", "latest")
    run("umoci", "unpack", "--image", f"{layout}:{tag}", place / "bundle")
    return place / "bundle/rootfs"


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_as_umoci_unpacks_it(name: str, ours: Ours, tmp_path: Path) -> None:
    theirs = read(unpacked(archive(name), tmp_path))
    ours.layerstore("import", f"oci-archive:{archive(name)}", "--tag", name)
    read_only = read(ours.mount(name, "--ro"))
    assert differences(read_only, theirs) == []
    assert differences(read(ours.mount(name, "--name", "kept")), theirs) == []


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("oci", []),
        ("oci", ["--dest-compress-format=zstd"]),
        ("oci-archive", []),
        ("docker-archive", []),
    ],
    ids=["oci", "oci-zstd", "oci-archive", "docker-archive"],
)
def test_the_same_however_skopeo_writes_it(
    kind: str, options: list[str], ours: Ours, tmp_path: Path
) -> None:
    theirs = read(unpacked(archive("odd"), tmp_path))
    copy = f"{kind}:{tmp_path}/copy" + (":odd:latest" if kind == "docker-archive" else "")
    if kind == "oci":
        copy += ":odd"
    run("skopeo", "copy", *options, f"oci-archive:{archive('odd')}", copy)
    if "zstd" in str(options):
        _assert_compressed(tmp_path / "copy", "zstd")
    source = f"{kind}:{tmp_path}/copy" + (":odd" if kind == "oci" else "")
    ours.layerstore("import", source, "--tag", "odd")
    assert differences(read(ours.mount("odd", "--ro")), theirs) == []


def _assert_compressed(layout: Path, how: str) -> None:
    """skopeo has done what it was asked, so that the test shows what its name says."""
    manifest = json.loads((layout / "index.json").read_bytes())["manifests"][0]
    blobs = layout / "blobs/sha256"
    layers = json.loads((blobs / manifest["digest"].split(":")[1]).read_bytes())["layers"]
    assert all(layer["mediaType"].endswith(how) for layer in layers)


@pytest.mark.slow
def test_as_podman_mounts_it(ours: Ours, engines: Engines) -> None:
    image = archive("podman")
    podman = engines.make("podman")
    identity = podman("pull", "-q", f"oci-archive:{image}").split()[-1]
    theirs = read(podman("image", "mount", identity).strip())
    ours.layerstore("import", f"oci-archive:{image}", "--tag", "podman")
    found = read(ours.mount("podman", "--ro"))
    podman("image", "umount", identity)
    # podman makes the root directory itself; the kernel gives every merged directory one link,
    # and a file those that a higher layer removed as well.
    found.pop(b"")
    theirs.pop(b"")
    assert differences(found, theirs, ignored=frozenset({"nlink"})) == []


def test_a_root_filesystem_as_directory_and_as_tar(ours: Ours, tmp_path: Path) -> None:
    root = unpacked(archive("odd"), tmp_path)
    theirs = read(root)
    ours.layerstore("import", f"dir:{root}", "--tag", "directory")
    assert differences(read(ours.mount("directory", "--ro")), theirs) == []
    run("tar", "--xattrs", "--xattrs-include=*", "-C", root, "-cf", tmp_path / "root.tar", ".")
    ours.layerstore("import", f"tar:{tmp_path / 'root.tar'}", "--tag", "tar")
    # Not in any archive: nanoseconds, by tar's default format.
    found = read(ours.mount("tar", "--ro"))
    assert differences(found, theirs, ignored=frozenset({"mtime_ns"})) == []


def test_one_store_holds_all_of_them_and_each_upper_is_its_own(ours: Ours) -> None:
    for name in ("odd", "debian-hello"):
        ours.layerstore("import", f"oci-archive:{archive(name)}", "--tag", name)
    first = ours.mount("odd", "--name", "first")
    second = ours.mount("odd", "--name", "second")
    (first / "kinds/file65").unlink()
    (first / "links/one").write_text("changed")
    assert (second / "kinds/file65").exists()
    assert (second / "links/two").read_text() == "three names"
    assert (first / "links/two").read_text() == "changed"
    assert ours.overlayfs("diff", second) == ""
    ours.unmount(first)
    again = ours.mount("odd", "--name", "first")
    assert not (again / "kinds/file65").exists()
    assert (again / "links/two").read_text() == "changed"
    assert (again / "links/one").stat().st_nlink == 2
