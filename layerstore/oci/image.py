"""What an image consists of: its manifest and config, checked, and where its layers are.

Sources: OCI image spec (image-layout.md, image-index.md, manifest.md, config.md) and Docker's
"Image Manifest Version 2, Schema 2", which differ in media types only.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from layerstore import digests
from layerstore.errors import SourceInvalid
from layerstore.oci.files import Files, read_limited

INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
CONFIG_TYPES = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
LAYER_TYPES = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
)
LAYERS_MAX = 10_000
_INDEX_DEPTH_MAX = 8
_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "i686": "386",
    "loongarch64": "loong64",
}


@dataclass(slots=True)
class LayerSource:
    """One layer of an image, bottom first.

    `diff_id`: of its uncompressed tar, None until it is read. `digest`, `size`: of the blob as it
    is kept, None where the source does not say. `assemble`: opens the uncompressed tar, put together
    from files that are in the store and the rest of the blob; returns None where the blob is to be
    read. Only for a layer whose diff id is known: nothing else tells whether it is right.
    """

    label: str
    open: Callable[[], BinaryIO]
    diff_id: str | None = None
    digest: str | None = None
    size: int | None = None
    needs_end: bool = False
    assemble: Callable[[], BinaryIO | None] | None = None


@dataclass(slots=True)
class ImageSource:
    """An image that can be imported.

    `config`: the bytes that give the image its id; empty for a bare tree, which gets one: from
    `make_config`, given the diff ids, if it is there. `names`: what the source calls it.
    """

    label: str
    config: bytes
    layers: list[LayerSource]
    manifest: bytes = b""
    names: list[str] = field(default_factory=list)
    make_config: Callable[[list[str]], bytes] | None = None


def host_architecture() -> str:
    """This machine's architecture as OCI (that is, Go) calls it."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        SourceInvalid: it is something else.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = str(error).split("\n")[0] or "nested too deeply"
        raise SourceInvalid(f"{what} is not valid JSON: {reason}") from None
    if not isinstance(value, dict):
        raise SourceInvalid(f"{what} is not a JSON object")
    return value


def diff_ids_of(config: dict[str, Any], label: str) -> list[str]:
    """The diff ids a config lists, bottom first.

    Raises:
        SourceInvalid: it lists none, or not as it should.
    """
    rootfs = config.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if diff_ids is None and isinstance(rootfs, dict):
        diff_ids = []
    if not isinstance(diff_ids, list) or not all(digests.is_sha256(item) for item in diff_ids):
        raise SourceInvalid(f"{label}: the config has no rootfs.diff_ids of SHA-256 digests")
    if len(diff_ids) > LAYERS_MAX:
        raise SourceInvalid(f"{label}: {len(diff_ids)} layers are more than {LAYERS_MAX}")
    return diff_ids


class Layout:
    """An OCI image layout.

    Args:
        files: where it is.
        blobs: what the names of blobs start with, before the digits of their digest.
    """

    def __init__(self, files: Files, *, blobs: str = "blobs/sha256/") -> None:
        self._files = files
        self._label = files.label
        self._blobs = blobs

    def image(self, reference: str | None) -> ImageSource:
        """The image called `reference` (its `org.opencontainers.image.ref.name`), or the only one.

        Raises:
            SourceInvalid: there is none such, or it is not as the spec wants it.
        """
        layout = parse_object(
            read_limited(self._files, "oci-layout", "this is no OCI image layout: oci-layout"),
            f"{self._label}: oci-layout",
        )
        version = layout.get("imageLayoutVersion")
        if not isinstance(version, str) or not version.startswith("1."):
            raise SourceInvalid(f"{self._label}: OCI image layout version {version!r}, known is 1")
        index = parse_object(
            read_limited(self._files, "index.json", "index.json"), f"{self._label}: index.json"
        )
        chosen = self._choose(self._manifests(index, "index.json"), reference)
        return self._image(self._descend(chosen), _names(chosen))

    def bare_image(self) -> ImageSource:
        """The image of a directory as skopeo's `dir:` writes it: manifest.json, and blobs by digest.

        Raises:
            SourceInvalid: it is not as it should be.
        """
        return self._image(read_limited(self._files, "manifest.json", "manifest.json"), [])

    def _manifests(self, index: dict[str, Any], what: str) -> list[dict[str, Any]]:
        manifests = index.get("manifests")
        if not isinstance(manifests, list) or not all(isinstance(m, dict) for m in manifests):
            raise SourceInvalid(f"{self._label}: {what} has no list of manifests")
        return manifests

    def _choose(self, manifests: list[dict[str, Any]], reference: str | None) -> dict[str, Any]:
        named = [m for m in manifests if reference in (None, *_names(m, every=True))]
        if len(named) == 1:
            return named[0]
        if named and all(m.get("digest") == named[0].get("digest") for m in named):
            return named[0]
        if named and all(isinstance(m.get("platform"), dict) for m in named):
            return self._choose_platform(named)
        names = sorted({name for m in manifests for name in _names(m, every=True)})
        have = f"it has {', '.join(names)}" if names else f"it has {len(manifests)} without a name"
        if reference is None:
            raise SourceInvalid(f"{self._label}: which image? Append :TAG; {have}")
        raise SourceInvalid(f"{self._label}: no single image is called {reference!r}; {have}")

    def _choose_platform(self, manifests: list[dict[str, Any]]) -> dict[str, Any]:
        wanted = ("linux", host_architecture())
        have = []
        for manifest in manifests:
            system = manifest.get("platform")
            system = system if isinstance(system, dict) else {}
            found = (str(system.get("os")), str(system.get("architecture")))
            if found == wanted:
                return manifest
            if found[0] != "unknown":  # attestations
                have.append("/".join(found))
        raise SourceInvalid(
            f"{self._label}: no image for {'/'.join(wanted)}; it has {', '.join(have) or 'none'}"
        )

    def _descend(self, descriptor: dict[str, Any]) -> bytes:
        """The manifest a descriptor leads to, through any indexes."""
        for _ in range(_INDEX_DEPTH_MAX):
            data = self._read_blob(descriptor, "the manifest")
            content = parse_object(data, f"{self._label}: manifest {descriptor['digest']}")
            kind = content.get("mediaType") or descriptor.get("mediaType")
            if kind in MANIFEST_TYPES or (kind is None and "layers" in content):
                return data
            if kind not in INDEX_TYPES and "manifests" not in content:
                raise SourceInvalid(
                    f"{self._label}: manifest {descriptor['digest']} is of type {kind!r}, which is no"
                    " image; known are OCI 1 and Docker schema 2"
                )
            manifests = self._manifests(content, "an image index")
            descriptor = manifests[0] if len(manifests) == 1 else self._choose_platform(manifests)
        raise SourceInvalid(f"{self._label}: image indexes lead to each other in a circle")

    def _image(self, data: bytes, names: list[str]) -> ImageSource:
        manifest = parse_object(data, f"{self._label}: the manifest")
        descriptor, layers = manifest.get("config"), manifest.get("layers")
        if not isinstance(descriptor, dict) or not isinstance(layers, list):
            raise SourceInvalid(f"{self._label}: the manifest has no config or no list of layers")
        kind = descriptor.get("mediaType")
        if kind not in CONFIG_TYPES:
            raise SourceInvalid(
                f"{self._label}: its config is of type {kind!r}: an artifact, not a container image"
            )
        config = self._read_blob(descriptor, "the config")
        diff_ids = diff_ids_of(parse_object(config, f"{self._label}: the config"), self._label)
        if len(layers) != len(diff_ids):
            raise SourceInvalid(
                f"{self._label}: the manifest has {len(layers)} layers, the config {len(diff_ids)}"
            )
        sources = [
            self._layer(layer, diff_id, number, len(layers))
            for number, (layer, diff_id) in enumerate(zip(layers, diff_ids, strict=True), 1)
        ]
        return ImageSource(self._label, config, sources, data, names)

    def _layer(self, layer: Any, diff_id: str, number: int, count: int) -> LayerSource:
        label = f"{self._label}: layer {number} of {count}"
        if not isinstance(layer, dict):
            raise SourceInvalid(f"{label} is no descriptor")
        kind = layer.get("mediaType")
        if kind not in LAYER_TYPES:
            raise SourceInvalid(f"{label} is of type {kind!r}, which is no layer of an image")
        digest, size = self._descriptor(layer, label)
        name = self._blobs + digests.hex_of(digest)

        def open_blob() -> BinaryIO:
            file = self._files.open(name)
            if file is None:
                raise SourceInvalid(f"{label}: blob {digest} is missing")
            return file

        return LayerSource(f"{label} ({digest[:19]})", open_blob, diff_id, digest, size)

    def _descriptor(self, descriptor: dict[str, Any], what: str) -> tuple[str, int]:
        digest, size = descriptor.get("digest"), descriptor.get("size")
        if digests.is_other(digest):
            raise SourceInvalid(f"{what}: digest {digest} is not SHA-256; make it again with that")
        if not digests.is_sha256(digest) or not isinstance(size, int) or size < 0:
            raise SourceInvalid(f"{what}: its descriptor has no SHA-256 digest and size")
        assert isinstance(digest, str)
        return digest, size

    def _read_blob(self, descriptor: dict[str, Any], what: str) -> bytes:
        digest, size = self._descriptor(descriptor, f"{self._label}: {what}")
        data = read_limited(self._files, self._blobs + digests.hex_of(digest), what)
        found = digests.of_bytes(data)
        if found != digest:
            raise SourceInvalid(f"{self._label}: {what} {digest} is damaged: its digest is {found}")
        if len(data) != size:
            raise SourceInvalid(
                f"{self._label}: {what} {digest} has {len(data)} bytes, its descriptor says {size}"
            )
        return data


def _names(descriptor: dict[str, Any], *, every: bool = False) -> list[str]:
    """The names in a descriptor's annotations; a bare tag names no image unless `every` is asked."""
    annotations = descriptor.get("annotations")
    if not isinstance(annotations, dict):
        return []
    keys = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
    found = [annotations.get(key) for key in keys]
    names = [name for name in found if isinstance(name, str) and name]
    if every:
        return names
    return [name for name in names if ":" in name or "/" in name][:1]
