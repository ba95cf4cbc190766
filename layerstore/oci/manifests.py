"""The manifest of an image that leaves the store: the one it came with where every layer is as it
was, and one like it where not. Pure functions.

Source: OCI image spec, manifest.md and descriptor.md.
"""

from __future__ import annotations

import json
from typing import Any

from layerstore import digests
from layerstore.oci.image import CONFIG_TYPES, MANIFEST_TYPES

Descriptor = dict[str, Any]

_OCI = "application/vnd.oci."
_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_SUFFIXES = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}


def listed_layers(manifest: bytes, count: int) -> list[Descriptor | None]:
    """The descriptors in a manifest of `count` layers, bottom first; None where there is none.

    Args:
        manifest: as it came; empty: there was none.
    """
    found = json.loads(manifest).get("layers") if manifest else None
    if isinstance(found, list) and len(found) == count:
        return found
    return [None] * count


def method_of(descriptor: Descriptor) -> str:
    """How a listed blob is compressed, by its type: one of `compressing.METHODS`."""
    kind: str = descriptor["mediaType"]
    for method in ("gzip", "zstd"):
        if kind.endswith((f"+{method}", f".{method}")):
            return method
    return "none"


def layer_descriptor(digest: str, size: int, method: str) -> Descriptor:
    """The descriptor of a layer's blob that was made here."""
    return {"mediaType": _OCI_LAYER + _SUFFIXES[method], "digest": digest, "size": size}


def media_type(manifest: bytes) -> str:
    """The type of a manifest; OCI's says it only if it likes."""
    return str(json.loads(manifest).get("mediaType") or MANIFEST_TYPES[0])


def manifest_for(config: bytes, original: bytes, layers: list[Descriptor]) -> bytes:
    """The manifest of an image.

    Args:
        config: of the image.
        original: the manifest it came with; empty: none.
        layers: the descriptors of its layers as they are now, bottom first.
    """
    if original and layers == listed_layers(original, len(layers)):
        return original
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPES[0],
        "config": {
            "mediaType": CONFIG_TYPES[0],
            "digest": digests.of_bytes(config),
            "size": len(config),
        },
        "layers": [_as_oci(layer) for layer in layers],
    }
    annotations = json.loads(original).get("annotations") if original else None
    if isinstance(annotations, dict):
        manifest["annotations"] = annotations
    return json.dumps(manifest, separators=(",", ":")).encode()


def _as_oci(descriptor: Descriptor) -> Descriptor:
    """A descriptor of a layer with OCI's type in the place of Docker's, which means the same."""
    if descriptor["mediaType"].startswith(_OCI):
        return descriptor
    return {**descriptor, "mediaType": _OCI_LAYER + _SUFFIXES[method_of(descriptor)]}
