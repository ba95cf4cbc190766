"""Writes docker-archive:, what docker load and podman load read: plain layers, all of them of known
size, so that it is a stream. Source: see `layerstore.oci.docker`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from layerstore import digests
from layerstore.export.layout import header
from layerstore.oci import tar_writer
from layerstore.refs import LayerRow


def docker_archive(
    config: bytes,
    layers: list[LayerRow],
    tar: Callable[[LayerRow], Iterator[bytes]],
    names: list[str],
) -> Iterator[bytes]:
    """The archive of an image.

    Args:
        config: the image's.
        layers: bottom first.
        tar: the plain tar of one.
        names: NAME:TAG, what the image is called.
    """
    files = {layer.diff_id: f"{digests.hex_of(layer.diff_id)}.tar" for layer in layers}
    for layer in {layer.diff_id: layer for layer in layers}.values():
        yield header(files[layer.diff_id].encode(), layer.tar_size)
        yield from tar(layer)
        yield bytes(-layer.tar_size % tar_writer.BLOCK)
    config_name = f"{digests.hex_of(digests.of_bytes(config))}.json"
    yield from _document(config_name, config)
    image = {
        "Config": config_name,
        "RepoTags": names,
        "Layers": [files[layer.diff_id] for layer in layers],
    }
    yield from _document("manifest.json", json.dumps([image], separators=(",", ":")).encode())
    yield tar_writer.END


def _document(name: str, data: bytes) -> Iterator[bytes]:
    yield header(name.encode(), len(data))
    yield data + bytes(-len(data) % tar_writer.BLOCK)
