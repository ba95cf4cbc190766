"""Lower files of all kinds, changes that copy them up, and what is found in the upper afterwards."""

from __future__ import annotations

import os
import random
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from layerstore.store import Store
from overlayfs_py.mount import build
from overlayfs_py.options import MountOptions
from overlayfs_py.overlay.overlay import Overlay
from overlayfs_py.wire.device import protocol
from overlayfs_py.wire.device.protocol import Opcode, Valid
from tests.layerstore.archives import Item, folder, tar_of
from tests.wire.device.client import Client, Told
from tests.wire.device.line import Line

LIMIT = 1 << 18
"""Bytes that are copied without Python."""
PLAIN = ("plain", "empty", "edge", "owned")
"""Files whose copy-up is simple; whatever the others are is Python's."""
TMPFS = 0x01021994
"""TMPFS_MAGIC in <linux/magic.h>."""
_LAID_NS = 1_000_000_000_123_456_789


def lay(lower: Path) -> None:
    """Files with and without what needs care, old."""
    chance = random.Random(7)
    (lower / "sub").mkdir()
    for name, size in (
        *(("plain", 1000), ("edge", LIMIT), ("over", LIMIT + 1), ("owned", 5000)),
        *(("empty", 0), ("xattr", 100), ("setuid", 100), ("linked", 100), ("sub/plain", 1000)),
    ):
        (lower / name).write_bytes(chance.randbytes(size))
        (lower / name).chmod(0o640)
    with (lower / "sparse").open("wb") as file:
        file.write(b"begin")
        file.truncate(20_000)
    os.setxattr(lower / "xattr", "user.a", b"1")
    os.chown(lower / "owned", 5, 6)
    (lower / "setuid").chmod(0o4755)
    os.link(lower / "linked", lower / "other")
    for number, path in enumerate(sorted(lower.rglob("*"))):
        os.utime(path, ns=(_LAID_NS + number, _LAID_NS - number))


def import_image(lower: Path, root: Path) -> None:
    """The same files as the image `copied` of a store at `root`; but for holes, which no image has."""
    items = [folder("sub")]
    for path in sorted(lower.rglob("*")):
        name = str(path.relative_to(lower))
        if path.is_file() and name not in ("other", "sparse"):
            status = path.stat()
            item = Item(name, path.read_bytes(), mode=stat.S_IMODE(status.st_mode))
            item.uid, item.gid = status.st_uid, status.st_gid
            item.xattrs = {"user.a": "1"} if name == "xattr" else {}
            items.append(item)
    archive = root.with_suffix(".tar")
    archive.write_bytes(tar_of(items))
    with Store.open(str(root), create=True) as store:
        store.import_image(f"tar:{archive}", "copied")


class Place(NamedTuple):
    """Where the upper of one union is."""

    upper: Path
    work: Path


def place(directory: Path, name: str) -> Place:
    made = Place(directory / f"{name}-upper", directory / f"{name}-work")
    for path in made:
        path.mkdir()
        path.chmod(0o755)
        os.utime(path, ns=(_LAID_NS, _LAID_NS))
    return made


@contextmanager
def union(source: Path, place: Place, **chosen: Any) -> Iterator[Overlay]:
    """A union of a lower directory, or of the image `copied` of a store, and the upper of `place`."""
    options = MountOptions(**{"fsync": False, **chosen})
    if (source / "objects").is_dir():
        options.image, options.store_root = "copied", os.fsencode(source)
    else:
        options.lowerdirs = [os.fsencode(source)]
    options.upperdir, options.workdir = os.fsencode(place.upper), os.fsencode(place.work)
    overlay = build(options)
    try:
        yield overlay
    finally:
        overlay.close()


@contextmanager
def served(overlay: Overlay, *, laned: bool) -> Iterator[tuple[Line, Client]]:
    line = Line(overlay, laned=laned)
    try:
        yield line, Client(line)
    finally:
        line.close()


class Change(NamedTuple):
    """A SETATTR: FATTR_* and the fields that they name."""

    valid: int
    fields: Mapping[str, int] = MappingProxyType({})

    def body(self) -> bytes:
        names = (
            *("valid", "padding", "fh", "size", "lock_owner", "atime", "mtime", "ctime"),
            *("atimensec", "mtimensec", "ctimensec", "mode", "unused4", "uid", "gid", "unused5"),
        )
        values = {"valid": self.valid, **self.fields}
        return protocol.SETATTR_IN.pack(*(values.get(name, 0) for name in names))


CHANGES = {
    "chmod": Change(Valid.MODE, {"mode": 0o604}),
    "chown": Change(Valid.UID | Valid.GID, {"uid": 7, "gid": 8}),
    "utimens": Change(Valid.ATIME | Valid.MTIME, {"atime": 5, "mtime": 6, "mtimensec": 7}),
    "shorten": Change(Valid.SIZE, {"size": 10}),
    "empty": Change(Valid.SIZE),
    "lengthen": Change(Valid.SIZE, {"size": 300_000}),
}


def walk_to(client: Client, name: str) -> Told:
    directory, _, last = name.rpartition("/")
    told = client.lookup(walk_to(client, directory).id if directory else 1, last.encode())
    assert not isinstance(told, int), os.strerror(told)
    return told


def change(line: Line, client: Client, node: int, wanted: Change) -> tuple[bytes, bool]:
    """The attributes after a change, and whether the lane made it."""
    before = by_lane(line, client)
    reply = client.ask(Opcode.SETATTR, node, wanted.body())
    assert not reply.error, os.strerror(reply.error)
    return reply.body, by_lane(line, client) > before


def by_lane(line: Line, client: Client) -> int:
    """How many requests so far were the lane's."""
    deadline = time.monotonic() + 30
    while line.session._slow:
        # Meanwhile nothing is published.
        assert time.monotonic() < deadline, "slow work without an end"
        time.sleep(0.0005)
    # Which counts after it has replied: what Python answers comes after that.
    client.xattrs(1)
    return 0 if line.laned is None else line.laned.lane.answered


def found(top: Path, *, times: bool = True) -> dict[str, dict[str, Any]]:
    """All that is in a directory, with all that it is but for its own numbers, and the time of its last change."""
    result = {}
    for path in (top, *top.rglob("*")):
        status = path.lstat()
        seen: dict[str, Any] = {
            "mode": status.st_mode,
            "owner": (status.st_uid, status.st_gid),
            "links": status.st_nlink,
            "xattrs": {name: os.getxattr(path, name) for name in os.listxattr(path)},
        }
        if path.is_file():
            seen["content"] = path.read_bytes()
        if path.is_dir():
            # That it is looked at here moves its access time.
            seen["times"] = status.st_mtime_ns
        else:
            seen["blocks"] = status.st_blocks
            if times:
                seen["times"] = status.st_atime_ns, status.st_mtime_ns
        result[str(path.relative_to(top))] = seen
    return result
