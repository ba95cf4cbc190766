"""Writes small OCI images for the store's rows (OCI image-spec: image-layout, manifest, config)."""

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SEED = 7
MEDIA = "application/vnd.oci.image"


def files(seed: int, count: int) -> dict[str, bytes]:
    """File names and contents, most of them small, that compress about as binaries do."""
    chance = random.Random(seed)
    made = {}
    for number in range(count):
        size = chance.choices((300, 2000, 9000, 60_000), (35, 35, 20, 10))[0]
        noise = chance.randbytes(size // 3)
        name = f"usr/lib/s{seed}/{number % 50:02d}/{number:05d}"
        made[name] = noise + (b"%08d" % number) * ((size - len(noise)) // 8)
    return made


def write(layout: Path, images: Mapping[str, Sequence[dict[str, bytes]]]) -> None:
    """Writes a layout with an image for each tag, from the contents of its layers, lowest first."""
    (layout / "blobs/sha256").mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    manifests = [_image(layout, tag, layers) for tag, layers in images.items()]
    index = {"schemaVersion": 2, "manifests": manifests}
    (layout / "index.json").write_text(json.dumps(index))


def _image(layout: Path, tag: str, layers: Sequence[dict[str, bytes]]) -> dict[str, Any]:
    descriptors, ids = [], []
    for number, content in enumerate(layers):
        archive = _tar(content, mtime=1_600_000_000 + number + 1000 * len(layers))
        ids.append("sha256:" + hashlib.sha256(archive).hexdigest())
        packed = gzip.compress(archive, compresslevel=1, mtime=0)
        descriptors.append(_put(layout, packed, f"{MEDIA}.layer.v1.tar+gzip"))
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": ids},
        "history": [{"created_by": "benchmark"} for _ in ids],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{MEDIA}.manifest.v1+json",
        "config": _put(layout, json.dumps(config).encode(), f"{MEDIA}.config.v1+json"),
        "layers": descriptors,
    }
    described = _put(layout, json.dumps(manifest).encode(), f"{MEDIA}.manifest.v1+json")
    return {**described, "annotations": {"org.opencontainers.image.ref.name": tag}}


def _put(layout: Path, content: bytes, media_type: str) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def _tar(content: dict[str, bytes], mtime: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for directory in sorted({str(parent) for name in content for parent in Path(name).parents}):
            if directory != ".":
                entry = tarfile.TarInfo(directory)
                entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, mtime
                tar.addfile(entry)
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(data), 0o644, mtime
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
