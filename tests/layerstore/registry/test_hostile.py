"""Registries that stall, lie, send elsewhere or answer nonsense: refused in one line, nothing kept."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from layerstore.registry.access import Access
from layerstore.registry.blobs import Blob
from tests.layerstore.archives import OCI, Item, Layout, digest_of, layout_of, tar_of
from tests.layerstore.registry.refusal import at, refused
from tests.layerstore.registry.served import (
    INDEX,
    MANIFEST,
    Handler,
    Request,
    Served,
)
from tests.layerstore.stores import BASE, litter

BIG = tar_of([Item("big", os.urandom(1 << 20))])
LAYER = digest_of(BIG)


def one_layer(served: Served) -> Layout:
    """Serve an image of one large layer that is not compressed."""
    layout = layout_of([BIG], compress="")
    served.add(layout, "1")
    return layout


def send(handler: Handler, data: bytes, **headers: str) -> None:
    """Send part of an answer, and keep the connection."""
    handler.send_response(200)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    with contextlib.suppress(OSError):
        handler.wfile.write(data)
        handler.wfile.flush()


# --- time


@pytest.mark.parametrize("part", ["/manifests/", "/blobs/"])
def test_no_answer(served: Served, impatient: Access, root: Path, part: str) -> None:
    one_layer(served)
    served.rules.append(at(part, lambda handler: served.stop.wait()))
    start = time.monotonic()
    refused(root, served, impatient, "(next to) nothing came for 0.5 seconds")
    assert time.monotonic() - start < 30


def test_stall_in_a_blob(served: Served, impatient: Access, root: Path) -> None:
    one_layer(served)

    def half(handler: Handler) -> None:
        send(handler, BIG[:1000], Content_Length=str(len(BIG)))
        served.stop.wait()
        handler.hang_up()

    served.rules.append(at(LAYER, half))
    refused(root, served, impatient, "nothing came for 0.5 seconds")


def test_drops_that_never_end(served: Served, impatient: Access, root: Path) -> None:
    """A byte now and then keeps a connection alive, and is no progress."""
    one_layer(served)

    def drip(handler: Handler) -> None:
        send(handler, b"", Content_Length=str(len(BIG)))
        with contextlib.suppress(OSError):
            while not served.stop.wait(0.1):
                handler.wfile.write(b"x")
        handler.hang_up()

    served.rules.append(at(LAYER, drip))
    start = time.monotonic()
    refused(root, served, impatient, "nothing came for 0.5 seconds")
    assert time.monotonic() - start < 30


def test_a_manifest_in_drops(served: Served, impatient: Access, root: Path) -> None:
    def drip(handler: Handler) -> None:
        send(handler, b"", Content_Type=MANIFEST, Content_Length="1000000")
        with contextlib.suppress(OSError):
            while not served.stop.wait(0.1):
                handler.wfile.write(b" ")
        handler.hang_up()

    served.rules.append(at("/manifests/", drip))
    refused(root, served, impatient, "nothing came for 0.5 seconds")


def test_nobody_answers(hasty: Access, root: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    refused(root, Served(f"127.0.0.1:{port}"), hasty, "cannot be reached: Connection refused")


def test_interrupted_while_a_registry_stalls(served: Served, root: Path) -> None:
    one_layer(served)
    served.rules.append(at(LAYER, lambda handler: served.stop.wait()))
    command = [sys.executable, "-m", "layerstore", "--root", str(root), "pull", "--insecure"]
    with subprocess.Popen([*command, f"{served.name}/a:1"], stderr=subprocess.PIPE) as running:
        while not any(LAYER in path for path in served.paths()):
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        start = time.monotonic()
        assert running.wait(60) == 130
        assert time.monotonic() - start < 30
        assert running.stderr is not None
        assert running.stderr.read() == b"layerstore: interrupted\n"
    assert set(litter(root)) <= {"tmp/downloads"}


# --- lengths and content


@pytest.mark.parametrize("off", [-1000, -1, 1, 10**12])
def test_a_length_that_lies(served: Served, hasty: Access, root: Path, off: int) -> None:
    one_layer(served)
    lie = str(len(BIG) + off)
    served.rules.append(at(LAYER, lambda handler: send(handler, BIG, Content_Length=lie)))
    refused(root, served, hasty, f"the registry sends {lie} bytes, the manifest says {len(BIG)}")


def chunked(handler: Handler, pieces: list[bytes], *, end: bool) -> None:
    send(handler, b"", Transfer_Encoding="chunked")
    with contextlib.suppress(OSError):
        for piece in pieces:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if end:
            handler.wfile.write(b"0\r\n\r\n")
    if not end:
        handler.hang_up()


def test_a_blob_without_end(served: Served, hasty: Access, root: Path) -> None:
    one_layer(served)
    pieces = [BIG, b"more", *[b"x" * 65536] * 100]
    served.rules.append(at(LAYER, lambda handler: chunked(handler, pieces, end=True)))
    refused(root, served, hasty, "the registry sends more bytes, the manifest says")


@pytest.mark.parametrize("end", [True, False])
def test_a_blob_that_is_always_cut_short(
    served: Served, hasty: Access, root: Path, end: bool
) -> None:
    one_layer(served)
    served.has_ranges = False
    served.rules.append(at(LAYER, lambda handler: chunked(handler, [BIG[:-5]], end=end)))
    refused(root, served, hasty, "ended after" if end else "the connection broke")


@pytest.mark.parametrize(
    "said", ["bytes 0-9/10", "bytes 5-1048575/*", "nonsense", "", "bytes 1000-1999/2000"]
)
def test_another_range_than_asked_for(served: Served, hasty: Access, root: Path, said: str) -> None:
    one_layer(served)

    def rule(handler: Handler, request: Request) -> bool:
        if LAYER not in request.path:
            return False
        if "range" in request.headers:
            handler.reply(206, BIG[:10], {"Content-Range": said})
        else:
            send(handler, BIG[:1000], Content_Length=str(len(BIG)))
            handler.hang_up()
        return True

    served.rules.append(rule)
    refused(root, served, hasty, "asked for bytes 1000 to")


def test_206_that_nobody_asked_for(served: Served, hasty: Access, root: Path) -> None:
    one_layer(served)
    served.rules.append(at(LAYER, lambda handler: handler.reply(206, BIG)))
    refused(root, served, hasty, "answers with status 206")


def test_wrong_content(served: Served, access: Access, root: Path) -> None:
    layout = one_layer(served)
    served.blobs[LAYER] = BIG[:-1] + b"x"
    refused(root, served, access, "damaged")
    config = json.loads(layout.blobs[layout.index["manifests"][0]["digest"]])["config"]["digest"]
    served.blobs[config] = served.blobs[config].replace(b"amd64", b"arm64")
    refused(root, served, access, f"the config {config} is damaged")


def test_a_manifest_with_another_digest(served: Served, access: Access, root: Path) -> None:
    digest = served.add(layout_of([BASE]), "1")
    served.manifests[digest] = served.manifests[digest][0] + b" ", MANIFEST
    refused(root, served, access, "is damaged: its digest is sha256:", f"a@{digest}")
    other = "sha256:" + "0" * 64
    headers = {"Content-Type": MANIFEST, "Docker-Content-Digest": other}
    data = served.manifests["1"][0]
    served.rules.append(at("/manifests/", lambda handler: handler.reply(200, data, headers)))
    refused(root, served, access, f"not {other}")


def test_a_manifest_that_is_too_large(served: Served, access: Access, root: Path) -> None:
    data = b"{" + b" " * (5 << 20)
    headers = {"Content-Type": MANIFEST}
    served.rules.append(at("/manifests/", lambda handler: handler.reply(200, data, headers)))
    refused(root, served, access, "answers with more than 4194304 bytes")


def test_a_bomb_in_the_transfer(served: Served, access: Access, root: Path) -> None:
    """What a registry compresses on the way is not unpacked: digests are of what is sent."""
    one_layer(served)
    bomb = gzip.compress(BIG)
    headers = {"Content-Encoding": "gzip"}
    served.rules.append(at(LAYER, lambda handler: handler.reply(200, bomb, headers)))
    refused(root, served, access, f"the registry sends {len(bomb)} bytes")


def test_missing(served: Served, access: Access, root: Path) -> None:
    refused(root, served, access, f"{served.name}/v2/a/manifests/1: is not there")
    one_layer(served)
    del served.blobs[LAYER]
    refused(root, served, access, f"the blob {LAYER} is missing")


# --- manifests


def descriptor(digest: str, data: bytes, **more: Any) -> dict[str, Any]:
    return {"mediaType": INDEX, "digest": digest, "size": len(data), **more}


def test_indexes_in_each_other(served: Served, access: Access, root: Path) -> None:
    """No hash leads back to itself, but a registry may go on as long as it likes."""
    inner: dict[str, Any] = {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
    for number in range(20):
        digest = served.add_manifest(inner, INDEX, str(number))
        below = descriptor(digest, served.manifests[digest][0])
        inner = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [below]}
    served.add_manifest(inner, INDEX, "1")
    refused(root, served, access, "more than 8 image indexes in each other")


def test_an_index_that_names_itself(served: Served, access: Access, root: Path) -> None:
    itself = descriptor("sha256:" + "1" * 64, b"x" * 200)
    data = json.dumps({"schemaVersion": 2, "manifests": [itself], "mediaType": INDEX}).encode()
    headers = {"Content-Type": INDEX}
    served.rules.append(at("/manifests/", lambda handler: handler.reply(200, data, headers)))
    refused(root, served, access, "is damaged: its digest is")


def test_an_index_that_lies_about_a_size(served: Served, access: Access, root: Path) -> None:
    digest = served.add(layout_of([BASE]), "x")
    served.add_manifest({"manifests": [descriptor(digest, b"12345")]}, INDEX, "1")
    refused(root, served, access, "bytes, the index says 5")


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        ({}, "text/html", "is of type 'text/html', which is no image"),
        ({}, "application/vnd.cncf.helm.config.v1+json", "which is no image"),
        ({}, "", "which is no image"),
        ({"schemaVersion": 1}, "application/json", "Docker schema 1"),
        ({"mediaType": INDEX}, MANIFEST, f"is sent as {MANIFEST}, but says that it is {INDEX}"),
        ({"mediaType": 5}, MANIFEST, "which is no image"),
        ({"layers": [], "manifests": []}, MANIFEST, "has both layers and manifests"),
        ({"layers": []}, MANIFEST, "no config or no list of layers"),
        ({"config": {}, "layers": 1}, MANIFEST, "no config or no list of layers"),
        ({"config": {"mediaType": "application/wasm"}, "layers": []}, MANIFEST, "an artifact"),
        ({"manifests": 1}, INDEX, "has no list of manifests"),
        ({"manifests": []}, INDEX, "no image for linux/"),
        ({"manifests": [1]}, INDEX, "has no list of manifests"),
        ({"manifests": [{}]}, INDEX, "leads to a manifest without SHA-256 digest"),
        ({"manifests": [{"digest": "sha512:00", "size": 1}]}, INDEX, "which is not SHA-256"),
        (
            {"manifests": [{"digest": "sha256:" + "0" * 64}]},
            INDEX,
            "without SHA-256 digest and size",
        ),
        ([], MANIFEST, "is not a JSON object"),
    ],
)
def test_what_is_no_manifest(
    served: Served, access: Access, root: Path, value: Any, kind: str, said: str
) -> None:
    served.add_manifest(value, kind, "1")
    refused(root, served, access, said)


def test_a_manifest_that_is_no_json(served: Served, access: Access, root: Path) -> None:
    served.manifests["1"] = b"\xff\x00<html>", MANIFEST
    refused(root, served, access, "is not valid JSON")
    served.manifests["1"] = b"[" * 100_000, MANIFEST
    refused(root, served, access, "is not valid JSON")


@pytest.mark.parametrize(
    "digest", ["../../etc/passwd", "sha256:../x", 5, None, "sha512:" + "0" * 128]
)
def test_digests_that_are_none(served: Served, access: Access, root: Path, digest: Any) -> None:
    config = {"mediaType": f"{OCI}.config.v1+json", "digest": digest, "size": 5}
    served.add_manifest({"config": config, "layers": []}, MANIFEST, "1")
    refused(root, served, access, "SHA-256")
    layout = layout_of([BASE])
    manifest = json.loads(layout.blobs[layout.index["manifests"][0]["digest"]])
    manifest["layers"][0]["digest"] = digest
    served.blobs.update(layout.blobs)
    served.add_manifest(manifest, MANIFEST, "1")
    refused(root, served, access, "SHA-256")


def test_downloads_end_before_their_files_are_closed(
    served: Served, access: Access, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import that fails while another layer comes: nothing is written to a descriptor that may be
    somebody else's by then."""
    broken = b"no tar at all" * 100
    layout = layout_of([broken, BIG], compress="")
    served.add(layout, "1")
    errors: list[OSError] = []
    append = Blob.append

    def watched(blob: Blob, data: bytes) -> None:
        try:
            append(blob, data)
        except OSError as error:
            errors.append(error)
            raise

    def slowly(handler: Handler) -> None:
        send(handler, b"", Content_Length=str(len(BIG)))
        with contextlib.suppress(OSError):
            for start in range(0, len(BIG), 1 << 16):
                handler.wfile.write(BIG[start : start + (1 << 16)])
                served.stop.wait(0.02)
        handler.hang_up()

    monkeypatch.setattr(Blob, "append", watched)
    served.rules.append(at(LAYER, slowly))
    refused(root, served, access, "layer 1 of 2")
    assert errors == []
