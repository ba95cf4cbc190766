"""Layers of which the store has most files: only the rest comes, and what comes of it is the same."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layerstore.errors import StoreError
from layerstore.registry import parts
from layerstore.registry.access import Access
from layerstore.registry.images import pull
from layerstore.store import Store
from tests.layerstore.archives import digest_of
from tests.layerstore.chunked import NEW, OLD, Change, layout_with, zstd_chunked
from tests.layerstore.registry.partial import (
    AFTER,
    CHANCE,
    CONTENT,
    MISSING,
    Writer,
    changed,
    is_as_whole,
    pulled,
    served_as,
    tree,
)
from tests.layerstore.registry.served import Handler, Request, Served, multipart, serving, spans_of
from tests.layerstore.stores import litter, problems

FORMS: list[Any] = [
    pytest.param(zstd_chunked, {}, id="zstd"),
    pytest.param(zstd_chunked, {"prefix": OLD}, id="old zstd"),
    pytest.param(zstd_chunked, {"split": True}, id="tar-split"),
]


@pytest.mark.usefixtures("before")
@pytest.mark.parametrize(("write", "options"), FORMS)
def test_only_what_is_missing_comes(
    served: Served,
    root: Path,
    access: Access,
    tmp_path: Path,
    write: Writer,
    options: dict[str, Any],
) -> None:
    blob = served_as(served, "after", AFTER, write, **options)
    image, traffic = pulled(root, served, "after", access)
    config = len(served.blobs[image.id])
    assert traffic.fetched == served.sent_bytes - config
    assert traffic.total == len(blob)
    # Beside the files: headers and table, a few hundred bytes an entry.
    assert MISSING < traffic.fetched < MISSING + 25_000 < len(blob) // 4
    assert traffic.spared == len(blob) - traffic.fetched
    assert all("," in asked for asked in served.sent("range"))
    is_as_whole(root, served, image, access, tmp_path / "other")


@pytest.mark.usefixtures("before")
def test_one_range_at_a_time(
    served: Served, root: Path, access: Access, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_ONE_BY_ONE", parts._Cost(4000, 500))
    served.takes_several = False
    blob = served_as(served, "after", AFTER, zstd_chunked)
    image, traffic = pulled(root, served, "after", access)
    assert MISSING < traffic.fetched < MISSING + 25_000 < len(blob) // 4
    assert len([asked for asked in served.sent("range") if "," in asked]) == 1
    is_as_whole(root, served, image, access, tmp_path / "other")


@pytest.mark.usefixtures("before")
@pytest.mark.expects_log("not with a part; it is downloaded whole")
def test_no_ranges(served: Served, root: Path, access: Access, tmp_path: Path) -> None:
    served.has_ranges = False
    served_as(served, "after", AFTER, zstd_chunked)
    image, _ = pulled(root, served, "after", access)
    served.has_ranges = True
    is_as_whole(root, served, image, access, tmp_path / "other")


@pytest.mark.usefixtures("before")
@pytest.mark.parametrize("options", [{"keep_blobs": True}, {"partial": False}])
def test_whole_where_that_is_wanted(
    served: Served, root: Path, access: Access, options: dict[str, Any]
) -> None:
    blob = served_as(served, "after", AFTER, zstd_chunked)
    _, traffic = pulled(root, served, "after", access, **options)
    assert traffic.fetched == len(blob)
    assert not served.sent("range")


@pytest.mark.usefixtures("before")
def test_whole_where_little_is_there(served: Served, root: Path, access: Access) -> None:
    other = {name: CHANCE.randbytes(9000) for name in CONTENT}
    blob = served_as(served, "other", tree(other | {"etc/f1": CONTENT["etc/f1"]}), zstd_chunked)
    _, traffic = pulled(root, served, "other", access)
    assert len(served.sent("range")) == 1
    assert len(blob) < traffic.fetched < len(blob) + 5000


@pytest.mark.usefixtures("before")
def test_a_mirror_without_the_blob(served: Served, root: Path, access: Access) -> None:
    blob = served_as(served, "after", AFTER, zstd_chunked)
    with serving() as mirror:
        mirror.manifests, mirror.blobs = dict(served.manifests), dict(served.blobs)
        del mirror.blobs[digest_of(blob)]
        access = dataclasses.replace(access, mirrors=[mirror.name])
        _, traffic = pulled(root, served, "after", access)
    assert traffic.fetched < len(blob) // 4


# --- what is not so


def payload(table: dict[str, Any], name: str) -> dict[str, Any]:
    """The entry of a file."""
    (found,) = [one for one in table["entries"] if one["name"] == name]
    return dict(found)


def another(table: dict[str, Any]) -> None:
    """Takes one file that is there for another of the same size."""
    first, second = (
        next(one for one in table["entries"] if one["name"] == name)
        for name in ("etc/f5", "etc/f6")
    )
    first["digest"], first["size"] = second["digest"], second["size"]


def swapped(table: dict[str, Any]) -> None:
    """Gives an end before the start."""
    entry = next(one for one in table["entries"] if one["name"] == "etc/f5")
    entry["offset"], entry["endOffset"] = entry["endOffset"], entry["offset"]


TABLES: dict[str, tuple[Change, str]] = {
    "another file": (another, "so it is when put together"),
    "other places": (swapped, "files lie in each other"),
    "files in each other": (changed("etc/f5", offset=1000), "files lie in each other"),
    "a place behind the end": (changed("etc/f5", endOffset=1 << 40), "cannot be"),
    "a negative place": (changed("etc/f5", offset=-1), "cannot be"),
    "a number that is none": (changed("etc/f5", offset="7"), "cannot be"),
    "a huge number": (changed("etc/f5", size=1 << 70), "cannot be"),
    "no digest": (changed("etc/f5", digest="sha256:zz"), "has no SHA-256 digest"),
    "no entries": (lambda table: table.pop("entries"), "has no list of entries"),
    "entries of another kind": (lambda table: table["entries"].append(3), "has no list of entries"),
    "the place of another": (
        lambda table: table["entries"].append(payload(table, "etc/f5")),
        "files lie in each other",
    ),
    "another version": (lambda table: table.update(version=2), "is of version 2, not 1"),
}


@pytest.mark.usefixtures("before")
@pytest.mark.expects_log("whole")
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("what", TABLES)
def test_a_table_that_lies(
    served: Served,
    root: Path,
    access: Access,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    what: str,
    split: bool,
) -> None:
    change, said = TABLES[what]
    served_as(served, "after", AFTER, zstd_chunked, change=change, split=split)
    image, _ = pulled(root, served, "after", access)
    (line,) = caplog.messages
    assert said in line
    assert line.endswith("whole")
    assert len(line) < 500
    is_as_whole(root, served, image, access, tmp_path / "other")


def annotated(served: Served, **values: str | None) -> None:
    """Serve the image after, with other annotations."""
    blob, annotations = zstd_chunked(AFTER)
    for name, value in values.items():
        key = NEW + name.replace("_", "-")
        if value is None:
            del annotations[key]
        else:
            annotations[key] = value
    served.add(layout_with([(AFTER, blob, annotations)]), "after")


@pytest.mark.usefixtures("before")
@pytest.mark.expects_log("whole")
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"manifest_checksum": digest_of(b"x")}, "its digest is not"),
        ({"manifest_position": "1:2"}, "its place cannot be read"),
        ({"manifest_position": "1:2:3:2"}, "its place cannot be read"),
        ({"manifest_position": "9:9999999999:3:1"}, "is not within the"),
        ({"manifest_position": "100:100:99999999999:1"}, "is larger than is read"),
        ({"manifest_position": "\u0661:2:3:1"}, "its place cannot be read"),
    ],
)
def test_annotations_that_lie(
    served: Served,
    root: Path,
    access: Access,
    caplog: pytest.LogCaptureFixture,
    values: dict[str, str],
    said: str,
) -> None:
    annotated(served, **values)
    pulled(root, served, "after", access)
    (line,) = caplog.messages
    assert said in line


@pytest.mark.usefixtures("before")
@pytest.mark.parametrize("name", ["manifest_checksum", "manifest_position"])
def test_half_of_the_annotations_are_none(
    served: Served, root: Path, access: Access, name: str
) -> None:
    annotated(served, **{name: None})
    pulled(root, served, "after", access)
    assert not served.sent("range")


@pytest.mark.usefixtures("before")
@pytest.mark.expects_log("more than 67108864 bytes; it is downloaded whole")
def test_a_table_that_is_a_bomb(served: Served, root: Path, access: Access) -> None:
    blob, annotations = zstd_chunked(AFTER, change=lambda table: table.update(x=" " * (65 << 20)))
    start, length, _, kind = annotations[NEW + "manifest-position"].split(":")
    annotations[NEW + "manifest-position"] = f"{start}:{length}:1000:{kind}"
    served.add(layout_with([(AFTER, blob, annotations)]), "after")
    pulled(root, served, "after", access)


Answer = Callable[[Handler, bytes, list[tuple[int, int]]], None]


def part(handler: Handler, data: bytes, said: str, **headers: str) -> None:
    handler.reply(206, data, {"Content-Range": said, **headers})


def several(handler: Handler, body: bytes) -> None:
    handler.reply(206, body, {"Content-Type": "multipart/byteranges; boundary=xyz"})


ODD: dict[str, Answer] = {
    "another order": lambda h, d, s: several(h, multipart(d, s[::-1])),
    "other bytes": lambda h, d, s: several(h, multipart(d[::-1], s)),
    "joined": lambda h, d, s: several(h, multipart(d, [(s[0][0], s[-1][1])])),
    "another boundary": lambda h, d, s: several(h, multipart(d, s, "abc")),
    "cut short": lambda h, d, s: several(h, multipart(d, s)[:-200]),
    "a part too few": lambda h, d, s: several(h, multipart(d, s[:-1])),
    "a part too many": lambda h, d, s: several(h, multipart(d, [*s, s[0]])),
    "nonsense": lambda h, d, s: several(h, b"x" * 100_000),
    "no end of headers": lambda h, d, s: several(h, b"--xyz\r\nA: b\r\n" * 9000),
    "the size of another blob": lambda h, d, s: several(h, multipart(d + b"x", s)),
    "status 416": lambda h, d, s: h.reply(416),
    "status 400": lambda h, d, s: h.reply(400),
    "status 403": lambda h, d, s: h.reply(403),
    "status 404": lambda h, d, s: h.reply(404),
    "status 500": lambda h, d, s: h.reply(500),
    "hangs up": lambda h, d, s: h.hang_up(),
    "one part of many": lambda h, d, s: part(h, d[:9], f"bytes 0-8/{len(d)}"),
    "a part of nothing": lambda h, d, s: part(h, b"", "bytes 0-0/0"),
}


@pytest.mark.usefixtures("before")
@pytest.mark.expects_log("whole")
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("what", ODD)
def test_ranges_that_are_not_as_asked(
    served: Served,
    root: Path,
    hasty: Access,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    what: str,
    first: int,
    always: bool,
) -> None:
    """From the first or second request on, to several ranges or to every one."""
    blob = served_as(served, "after", AFTER, zstd_chunked)
    seen = 0

    def rule(handler: Handler, request: Request) -> bool:
        nonlocal seen
        spans = spans_of(request, len(blob))
        if not request.path.endswith(digest_of(blob)) or not spans:
            return False
        seen += 1
        if seen <= first or (len(spans) < 2 and not always):
            return False
        ODD[what](handler, blob, spans)
        return True

    served.rules.append(rule)
    image, _ = pulled(root, served, "after", hasty)
    assert seen > first
    assert len(caplog.messages) <= 1, caplog.messages
    served.rules.clear()
    is_as_whole(root, served, image, hasty, tmp_path / "other")


@pytest.mark.usefixtures("before")
@pytest.mark.expects_log("nothing came for 0.5 seconds; it is downloaded whole")
def test_ranges_that_stall(served: Served, root: Path, impatient: Access) -> None:
    blob = served_as(served, "after", AFTER, zstd_chunked)

    def rule(handler: Handler, request: Request) -> bool:
        if "range" not in request.headers:
            return False
        served.stop.wait()
        return True

    served.rules.append(rule)
    _, traffic = pulled(root, served, "after", impatient)
    assert traffic.fetched == len(blob)


@pytest.mark.usefixtures("before")
@pytest.mark.expects_log("is not there; it is downloaded whole")
def test_neither_in_parts_nor_whole(served: Served, root: Path, hasty: Access) -> None:
    blob = served_as(served, "after", AFTER, zstd_chunked)
    del served.blobs[digest_of(blob)]
    with (
        Store.open(str(root)) as store,
        pytest.raises(StoreError, match=f"the blob {digest_of(blob)} is missing"),
    ):
        pull(store, f"{served.name}/a:after", access=hasty)
    assert litter(root) == []
    assert problems(root) == []


@pytest.mark.usefixtures("before")
@pytest.mark.expects_log("its uncompressed digest is .* whole")
def test_an_object_that_is_damaged(
    served: Served, root: Path, access: Access, tmp_path: Path
) -> None:
    """Found by the digest of the tar; what is put under its name is not checked by an import."""
    with Store.open(str(root)) as store:
        path = Path(os.fsdecode(store.objects().path(digest_of(CONTENT["etc/f9"]))))
    sound = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(sound[::-1])
    served_as(served, "after", AFTER, zstd_chunked)
    with Store.open(str(root)) as store:
        pull(store, f"{served.name}/a:after", access=access)
    assert litter(root) == []
    path.write_bytes(sound)
    path.chmod(0o444)
    assert problems(root) == []


@pytest.mark.usefixtures("before")
def test_a_killed_pull_leaves_nothing_wrong(
    served: Served, root: Path, access: Access, tmp_path: Path
) -> None:
    blob = served_as(served, "after", AFTER, zstd_chunked)
    asked = 0

    def rule(handler: Handler, request: Request) -> bool:
        nonlocal asked
        spans = spans_of(request, len(blob))
        if not spans:
            return False
        asked += 1
        if asked == 1:
            return False
        handler.send_response(206)
        body = multipart(blob, spans)
        handler.send_header("Content-Type", "multipart/byteranges; boundary=xyz")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2])
        handler.wfile.flush()
        asked += 1
        served.stop.wait(20)
        return True

    served.rules.append(rule)
    words = [sys.executable, "-m", "layerstore", "--root", str(root), "pull", "--insecure"]
    with subprocess.Popen([*words, f"{served.name}/a:after"]) as process:
        for _ in range(1000):
            if asked == 3:
                break
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    assert asked == 3
    served.rules.clear()
    assert problems(root) == []
    image, traffic = pulled(root, served, "after", access)
    assert traffic.fetched < len(blob) // 4
    is_as_whole(root, served, image, access, tmp_path / "other")
