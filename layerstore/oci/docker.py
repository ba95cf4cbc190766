"""docker-archive: what `docker save` and `podman save` write. Source: Docker's image spec v1.2,
"Combined Image JSON + Filesystem Changeset Format"."""

from __future__ import annotations

import json
from typing import Any, BinaryIO

from layerstore import digests
from layerstore.errors import SourceInvalid
from layerstore.oci.files import Files, read_limited
from layerstore.oci.image import ImageSource, LayerSource, diff_ids_of, parse_object


def docker_image(files: Files, reference: str | None) -> ImageSource:
    """The image called `reference` (`NAME:TAG`, or `@N` for the N-th), or the only one.

    Args:
        files: the archive.

    Raises:
        SourceInvalid: there is none such, or the archive is not as it should be.
    """
    label = files.label
    data = read_limited(files, "manifest.json", "this is no docker-archive: manifest.json")
    try:
        items = json.loads(data)
    except (ValueError, RecursionError):
        items = None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise SourceInvalid(f"{label}: manifest.json is not a JSON list of images")
    item = _choose(items, reference, label)
    config_name, layers = item.get("Config"), item.get("Layers")
    if layers is None:
        layers = []
    if (
        not isinstance(config_name, str)
        or not isinstance(layers, list)
        or not all(isinstance(name, str) for name in layers)
    ):
        raise SourceInvalid(f"{label}: manifest.json has an image without Config and Layers")
    config = read_limited(files, config_name, "the config")
    _check_name(config, config_name, label)
    diff_ids = diff_ids_of(parse_object(config, f"{label}: the config"), label)
    if len(layers) != len(diff_ids):
        raise SourceInvalid(
            f"{label}: manifest.json has {len(layers)} layers, the config {len(diff_ids)}"
        )
    sources = [
        _layer(files, name, diff_id, f"{label}: layer {number} of {len(layers)} ({name[:32]})")
        for number, (name, diff_id) in enumerate(zip(layers, diff_ids, strict=True), 1)
    ]
    return ImageSource(label, config, sources, names=_tags(item))


def _choose(items: list[dict[str, Any]], reference: str | None, label: str) -> dict[str, Any]:
    if reference is None:
        if len(items) == 1:
            return items[0]
    elif reference.startswith("@"):
        if reference[1:].isdecimal() and int(reference[1:]) < len(items):
            return items[int(reference[1:])]
    else:
        wanted = reference if ":" in reference.rpartition("/")[2] else reference + ":latest"
        for item in items:
            if wanted in _tags(item):
                return item
    names = [name for item in items for name in _tags(item)]
    have = f"it has {', '.join(names)}" if names else f"it has {len(items)} without a name"
    if reference is None:
        raise SourceInvalid(f"{label}: which image? Append :NAME:TAG or :@N; {have}")
    raise SourceInvalid(f"{label}: no image is called {reference!r}; {have}")


def _tags(item: dict[str, Any]) -> list[str]:
    tags = item.get("RepoTags")
    return [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []


def _check_name(config: bytes, name: str, label: str) -> None:
    """A config is named by its digest; where it is, the two must agree."""
    stem = name.rpartition("/")[2].removesuffix(".json")
    if digests.is_sha256("sha256:" + stem):
        found = digests.of_bytes(config)
        if digests.hex_of(found) != stem:
            raise SourceInvalid(f"{label}: the config {stem} is damaged: its digest is {found}")


def _layer(files: Files, name: str, diff_id: str, label: str) -> LayerSource:
    def open_layer() -> BinaryIO:
        file = files.open(name)
        if file is None:
            raise SourceInvalid(f"{label}: {name} is missing from the archive")
        return file

    return LayerSource(label, open_layer, diff_id)
