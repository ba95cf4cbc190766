"""Finds the family's archives in the cache of tools/images, and lays them out for the stores.

Builds nothing: that takes minutes and the network, and belongs to tools/images.
"""

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import probe
from benchmarks.errors import CannotMeasure

FAMILY = (
    *("family-debian-a", "family-debian-b", "family-python-a", "family-python-b"),
    *("family-django", "family-node", "family-gcc"),
)
REFERENCE = "org.opencontainers.image.ref.name"


def find(name: str) -> Path:
    """The OCI archive of one image, the latest. Raises CannotMeasure where it was never built."""
    directory = probe.cache_directory() / "images"
    found = sorted(
        directory.glob(f"{name}-" + "[0-9a-f]" * 12 + ".tar"), key=lambda path: path.stat().st_mtime
    )
    if not found:
        raise CannotMeasure(f"{name} is not in {directory}: `tools/images {name}` builds it")
    return found[-1]


def lay_out(archives: dict[str, Path], layout: Path) -> None:
    """Makes one OCI layout of several archives of one image each; blobs that they share are there
    once, and each image is called by its key in `archives`."""
    manifests: list[dict[str, Any]] = []
    for tag, path in archives.items():
        with tarfile.open(path) as archive:
            archive.extractall(layout, filter="data")
        (manifest,) = json.loads((layout / "index.json").read_text())["manifests"]
        manifests.append({**manifest, "annotations": {REFERENCE: tag}})
    index = {"schemaVersion": 2, "manifests": manifests}
    (layout / "index.json").write_text(json.dumps(index))


def lay_out_family(names: Sequence[str], layout: Path) -> None:
    """The same for images of the family, by name. Raises CannotMeasure where one was never built."""
    lay_out({name: find(name) for name in names}, layout)


def blob(layout: Path, digest: str) -> Path:
    """Where a layout has a blob (OCI image-layout.md)."""
    return layout / "blobs" / digest.replace(":", "/")


def manifest_digest(layout: Path, tag: str) -> str:
    """The digest of an image's manifest. Raises CannotMeasure where there is no such image."""
    for entry in json.loads((layout / "index.json").read_text())["manifests"]:
        if entry.get("annotations", {}).get(REFERENCE) == tag:
            return str(entry["digest"])
    raise CannotMeasure(f"{layout} has no image {tag}")


def layer_blobs(layout: Path, tag: str) -> list[Path]:
    """The layer blobs of an image, lowest first."""
    manifest = json.loads(blob(layout, manifest_digest(layout, tag)).read_text())
    return [blob(layout, layer["digest"]) for layer in manifest["layers"]]


def identity(layout: Path, tag: str) -> tuple[str, list[str]]:
    """The id of an image, which is the digest of its config, and the diff ids of its layers."""
    manifest = json.loads(blob(layout, manifest_digest(layout, tag)).read_text())
    config = json.loads(blob(layout, manifest["config"]["digest"]).read_text())
    return manifest["config"]["digest"], config["rootfs"]["diff_ids"]
