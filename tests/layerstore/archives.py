"""Images for the tests, made by hand: every byte can be chosen, and got wrong."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

OCI = "application/vnd.oci.image"


@dataclass
class Item:
    """One entry of a layer."""

    name: str
    data: bytes | None = b""
    kind: bytes = tarfile.REGTYPE
    link: str = ""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = 0
    device: tuple[int, int] = (0, 0)
    xattrs: dict[str, str] = field(default_factory=dict)


def folder(name: str, mode: int = 0o755, **more: Any) -> Item:
    """A directory."""
    return Item(name, None, tarfile.DIRTYPE, mode=mode, **more)


def symlink(name: str, target: str) -> Item:
    """A symlink."""
    return Item(name, None, tarfile.SYMTYPE, target, 0o777)


def hard_link(name: str, target: str) -> Item:
    """A hard link."""
    return Item(name, None, tarfile.LNKTYPE, target)


def tar_of(items: Iterable[Item], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A layer's tar."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for item in items:
            info = tarfile.TarInfo(item.name)
            info.type, info.linkname, info.mode = item.kind, item.link, item.mode
            info.uid, info.gid, info.mtime = item.uid, item.gid, item.mtime
            info.devmajor, info.devminor = item.device
            info.pax_headers = {f"SCHILY.xattr.{k}": v for k, v in item.xattrs.items()}
            data = item.data or b""
            info.size = len(data) if item.kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def digest_of(data: bytes) -> str:
    """As OCI writes it."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def gzipped(data: bytes) -> bytes:
    """The same bytes every time."""
    return gzip.compress(data, 1, mtime=0)


def zstandard_of(data: bytes) -> bytes:
    """A zstd frame with a checksum."""
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


@dataclass
class Layout:
    """The parts of an OCI layout, each to be changed before it is written."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    index: dict[str, Any] = field(default_factory=dict)
    version: str | None = '{"imageLayoutVersion": "1.0.0"}'

    def add(self, data: bytes, kind: str, **more: Any) -> dict[str, Any]:
        """Add a blob; returns its descriptor."""
        digest = digest_of(data)
        self.blobs[digest] = data
        return {"mediaType": kind, "digest": digest, "size": len(data), **more}

    def add_json(self, value: Any, kind: str, **more: Any) -> dict[str, Any]:
        """Add a blob of JSON."""
        return self.add(json.dumps(value).encode(), kind, **more)

    def files(self) -> dict[str, bytes]:
        """What the layout consists of."""
        found = {"index.json": json.dumps(self.index).encode()}
        if self.version is not None:
            found["oci-layout"] = self.version.encode()
        for digest, data in self.blobs.items():
            found[f"blobs/sha256/{digest[7:]}"] = data
        return found

    def directory(self, path: Path) -> str:
        """Write it as a directory; returns the source."""
        for name, data in self.files().items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        return f"oci:{path}"

    def archive(self, path: Path) -> str:
        """Write it as an archive; returns the source."""
        path.write_bytes(tar_of(Item(name, data) for name, data in self.files().items()))
        return f"oci-archive:{path}"


def layout_of(
    layers: Sequence[bytes],
    *,
    compress: str = "gzip",
    name: str | None = None,
    config: dict[str, Any] | None = None,
) -> Layout:
    """The layout of an image with these layers' tars."""
    layout = Layout()
    kinds: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
        "gzip": ("+gzip", gzipped),
        "zstd": ("+zstd", zstandard_of),
        "": ("", bytes),
    }
    suffix, pack = kinds[compress]
    config_value = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        **(config or {}),
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": layout.add_json(config_value, f"{OCI}.config.v1+json"),
        "layers": [layout.add(pack(layer), f"{OCI}.layer.v1.tar{suffix}") for layer in layers],
    }
    key = "org.opencontainers.image.ref.name"
    annotations = {"annotations": {key: name}} if name else {}
    descriptor = layout.add_json(manifest, f"{OCI}.manifest.v1+json", **annotations)
    layout.index = {"schemaVersion": 2, "manifests": [descriptor]}
    return layout


def docker_archive(path: Path, layers: Sequence[bytes], tags: Sequence[str] = ()) -> str:
    """Write a docker-archive; returns the source."""
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        }
    ).encode()
    name = digest_of(config)[7:] + ".json"
    names = [f"{digest_of(layer)[7:]}/layer.tar" for layer in layers]
    manifest = [{"Config": name, "RepoTags": list(tags), "Layers": names}]
    items = [
        Item(name, config),
        *(Item(n, layer) for n, layer in dict(zip(names, layers, strict=True)).items()),
        Item("manifest.json", json.dumps(manifest).encode()),
    ]
    path.write_bytes(tar_of(items))
    return f"docker-archive:{path}"
