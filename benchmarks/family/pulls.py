"""How much of an image comes from a registry when the store has one like it: zstd:chunked by skopeo, served by
Debian's docker-registry on this machine.
"""

import contextlib
import gzip
import hashlib
import json
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import commands
from benchmarks.errors import CannotMeasure
from benchmarks.family import archives
from benchmarks.family.goals import Finding
from benchmarks.stores import Store
from benchmarks.subjects import Spec

PAIRS = (("family-python-a", "family-python-b", 0.1), ("family-python-b", "family-django", None))
"""What the store has, what is pulled then, and how much of its new layers may be fetched: the first pair is one
layer made anew with one more package, the second brings much that is new."""
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_END = 1024
"""Bytes of the mark at the end of a tar."""


def pulls(
    spec: Spec, layout: Path, place: Path, pairs: Sequence[tuple[str, str, float | None]] = PAIRS
) -> Iterator[Finding]:
    """Pulls each image after the one before, and says what was fetched.

    Args:
        spec: our own subject.
        layout: an OCI layout with the images.
        place: an empty directory.
        pairs: see `PAIRS`.
    """
    with _registry(place / "registry") as registry:
        for name in sorted({name for pair in pairs for name in pair[:2]}):
            _push(layout, name, place / "plain", registry)
        for before, after, goal in pairs:
            yield _pull(Store(spec, place / after), registry, before, after, goal)


def _pull(store: Store, registry: str, before: str, after: str, goal: float | None) -> Finding:
    store.directory.mkdir()
    first = _pulled(store, registry, before)
    said = _pulled(store, registry, after)
    whole = Store(store.spec, store.directory / "whole")
    whole.directory.mkdir()
    _pulled(whole, registry, before)
    plain = _pulled(whole, registry, after, "--no-partial")
    same = _indexes(store.directory) == _indexes(whole.directory)
    shutil.rmtree(store.directory)
    share = said["fetched"] / plain["fetched"]
    return Finding(
        f"pull {after} (zstd:chunked) into a store with {before}: bytes fetched / of the same without"
        " its table of contents",
        f"{said['fetched']:,} / {plain['fetched']:,} = {share:.3f} ({before}: {first['fetched']:,});"
        f" indexes {'the same' if same else 'DIFFERENT'}",
        "the same" if goal is None else f"<= {goal}, the same",
        same and (goal is None or share <= goal),
    )


def _pulled(store: Store, registry: str, name: str, *options: str) -> dict[str, Any]:
    words = store.layerstore("--json", "pull", "--insecure", *options, f"{registry}/{name}:1")
    said: dict[str, Any] = json.loads(commands.must(commands.run(words, timeout_s=600)).output)
    return said


def _indexes(directory: Path) -> dict[str, str]:
    return {
        f"{kind}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for kind in ("layers", "images")
        for path in (directory / kind).iterdir()
    }


def _push(layout: Path, name: str, place: Path, registry: str) -> None:
    """Have skopeo compress an image into the registry.

    Its tars end with their end mark: what archivers pad them with after it skopeo before 1.15 leaves
    out of zstd:chunked, and the layers then have not the digests that the config gives.
    """
    place.mkdir()
    (manifest_digest, diff_ids) = archives.manifest_digest(layout, name), []
    manifest = json.loads(archives.blob(layout, manifest_digest).read_text())
    config = json.loads(archives.blob(layout, manifest["config"]["digest"]).read_text())
    layers = []
    for path in archives.layer_blobs(layout, name):
        digest, size = _trimmed(path, place)
        diff_ids.append(digest)
        layers.append({"mediaType": _LAYER, "digest": digest, "size": size})
    config["rootfs"]["diff_ids"] = diff_ids
    manifest["layers"] = layers
    manifest["config"].update(_written(json.dumps(config).encode(), place))
    (place / "manifest.json").write_text(json.dumps(manifest))
    (place / "version").write_text("Directory Transport Version: 1.1\n")
    words = ["skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false"]
    words += ["--dest-compress-format=zstd:chunked", f"dir:{place}"]
    commands.must(commands.run([*words, f"docker://{registry}/{name}:1"], timeout_s=600))
    shutil.rmtree(place)


def _written(data: bytes, place: Path) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (place / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def _trimmed(blob: Path, place: Path) -> tuple[str, int]:
    """A gzipped tar without what follows its end mark; returns digest and size."""
    target = place / "unnamed"
    with gzip.open(blob) as source, open(target, "w+b") as file:
        shutil.copyfileobj(source, file, 1 << 20)
        file.seek(0)
        end = 0
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                size = member.size if member.isreg() else 0
                end = max(end, member.offset_data + size + -size % 512)
        file.truncate(end + _END)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    target.rename(place / digest)
    return f"sha256:{digest}", end + _END


@contextlib.contextmanager
def _registry(directory: Path) -> Iterator[str]:
    """docker-registry on a free port of this machine, as HOST:PORT."""
    if shutil.which("docker-registry") is None:
        raise CannotMeasure("docker-registry is not installed")
    directory.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    settings = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(directory / "content")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (directory / "config.yml").write_text(json.dumps(settings))  # JSON is YAML
    words: Sequence[str] = ("docker-registry", "serve", str(directory / "config.yml"))
    with (
        open(directory / "log", "wb") as log,
        subprocess.Popen(words, stdout=log, stderr=log) as it,
    ):
        try:
            for _ in range(500):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.02)
            yield f"localhost:{port}"
        finally:
            it.terminate()
