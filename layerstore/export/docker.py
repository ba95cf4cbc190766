"""Writes docker-archive:, what docker load and podman load read. Source: see `layerstore.oci.docker`.

Layers are plain unless they are to be compressed; those who read the archive look at the bytes.
"""

from __future__ import annotations

import json

from layerstore import digests
from layerstore.export.archive import Archive
from layerstore.export.layers import Blob
from layerstore.refs import LayerRow


def write_docker_archive(
    archive: Archive, config: bytes, layers: list[tuple[LayerRow, Blob]], names: list[str]
) -> None:
    """Write an image.

    Args:
        archive: a new one.
        config: the image's.
        layers: bottom first, and the form each leaves in.
        names: NAME:TAG, what the image is called.
    """
    files: dict[str, str] = {}
    for layer, blob in layers:
        if layer.diff_id in files:
            continue
        name = files[layer.diff_id] = f"{digests.hex_of(layer.diff_id)}.tar"
        if blob.descriptor is not None:
            archive.add_stream(name, blob.descriptor["size"], blob.chunks())
        else:
            with archive.made(blob.chunks()) as (_, size, chunks):
                archive.add_stream(name, size, chunks)
    config_name = f"{digests.hex_of(digests.of_bytes(config))}.json"
    archive.add(config_name, config)
    image = {
        "Config": config_name,
        "RepoTags": names,
        "Layers": [files[layer.diff_id] for layer, _ in layers],
    }
    archive.add("manifest.json", json.dumps([image], separators=(",", ":")).encode())
    archive.end()
