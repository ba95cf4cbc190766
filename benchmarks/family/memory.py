"""What the commands of our store take in memory with an image of a million entries, in one layer and in
fifty. Makes the images, as no real one is so large."""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import commands
from benchmarks.family.goals import PEAK_MIB_MAX, Finding
from benchmarks.oci_layout import MEDIA
from benchmarks.stores import Store
from benchmarks.subjects import Spec

ENTRIES = 1_000_000
LAYERS = (1, 50)
TIMEOUT_S = 1200.0
_BIG = b"benchmark " * 60
"""Over what an index inlines: an object."""


def entries(first: int, last: int) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Some entries of the image, in directories of ten, a hundred of which are in one: six in ten are
    small files, one is an object, one a symlink, one a hard link."""
    for number in range(first, last):
        parent = f"usr/share/package-{number // 1000}/directory-{number // 10 % 100}"
        part = number % 10
        entry = tarfile.TarInfo(parent if part == 0 else f"{parent}/file-{part}.txt")
        entry.mode, entry.mtime = 0o644, 1_600_000_000
        data = b""
        if part == 0:
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        elif part == 7:
            entry.type, entry.linkname = tarfile.SYMTYPE, "file-1.txt"
        elif part == 8:
            entry.type, entry.linkname = tarfile.LNKTYPE, f"{parent}/file-2.txt"
        elif part == 9:
            data = b"%d " % number + _BIG
        else:
            data = b"%d " % number * (number % 40)
        entry.size = len(data)
        yield entry, data


def write(layout: Path, count: int, layers: int) -> None:
    """Write an OCI layout with one image.

    Args:
        layout: a directory to be made.
        count: of entries in all.
        layers: of the image, plain tars.
    """
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    digests = []
    # A hard link and its target are in one layer.
    starts = [number * count // layers // 10 * 10 for number in range(layers)]
    for first, last in zip(starts, [*starts[1:], count], strict=True):
        hasher = hashlib.sha256()
        with open(layout / "layer", "wb") as file:
            for entry, data in entries(first, last):
                block = entry.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)
                hasher.update(block)
                file.write(block)
            hasher.update(bytes(1024))
            file.write(bytes(1024))
        digests.append(hasher.hexdigest())
        (layout / "layer").rename(blobs / digests[-1])
    ids = [f"sha256:{digest}" for digest in digests]
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids}}
    manifest = {
        "schemaVersion": 2,
        "config": _put(blobs, json.dumps(config).encode(), "config.v1+json"),
        "layers": [_descriptor(blobs / digest, "layer.v1.tar") for digest in digests],
    }
    described = _put(blobs, json.dumps(manifest).encode(), "manifest.v1+json")
    index = {"schemaVersion": 2, "manifests": [described]}
    (layout / "index.json").write_text(json.dumps(index))


def _put(blobs: Path, content: bytes, media_type: str) -> dict[str, object]:
    path = blobs / hashlib.sha256(content).hexdigest()
    path.write_bytes(content)
    return _descriptor(path, media_type)


def _descriptor(path: Path, media_type: str) -> dict[str, object]:
    size = path.stat().st_size
    return {"mediaType": f"{MEDIA}.{media_type}", "digest": f"sha256:{path.name}", "size": size}


def measure(spec: Spec, place: Path, count: int = ENTRIES) -> Iterator[Finding]:
    """Import each image and go through the commands that read one; ends with its directory as full as
    it was.

    Args:
        spec: our subject.
        place: an empty directory with 5 GB free for a million entries.
        count: of the entries of each image.

    Raises:
        CannotMeasure: a command fails.
    """
    for layers in LAYERS:
        home = place / f"memory-{layers}"
        home.mkdir()
        layout, store = home / "layout", Store(spec, home / "store")
        write(layout, count, layers)
        words = [
            ["import", f"oci:{layout}", "--tag", "large"],
            ["fsck"],
            ["gc"],
            ["diff", "large", "large"],
            ["export", "large", f"oci:{home / 'exported'}"],
            ["scrub", "--fast"],
        ]
        for command in words:
            argv = store.layerstore(*command)
            done = commands.must(commands.run(argv, timeout_s=TIMEOUT_S, watch_memory=True))
            mib = done.peak / (1 << 20)
            imports = command[0] == "import"
            yield Finding(
                f"{command[0]} of {count:,} entries in {layers} layers, peak memory",
                f"{mib:.0f} MiB; {done.wall_s:.0f} s",
                f"< {PEAK_MIB_MAX} MiB" if imports else "",
                mib < PEAK_MIB_MAX if imports else None,
            )
        commands.must(commands.run(["rm", "-r", str(home)], timeout_s=TIMEOUT_S))
