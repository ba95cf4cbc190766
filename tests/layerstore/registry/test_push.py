"""Push: nothing that is there is sent again, and what broke goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from layerstore.cli import run
from layerstore.errors import StoreError
from layerstore.export.layers import Compression
from layerstore.registry import uploads
from layerstore.registry.access import Access
from layerstore.registry.credentials import parse_credentials
from layerstore.registry.images import pull, push
from layerstore.store import Store
from tests.layerstore.archives import Item, Layout, digest_of, docker_archive, layout_of, tar_of
from tests.layerstore.registry.served import MANIFEST, Handler, Request, Served
from tests.layerstore.stores import BASE, TOP, imported, litter, problems

BIG = tar_of([Item("big", os.urandom(3 << 20))])


@pytest.fixture
def layout() -> Layout:
    return layout_of([BASE, TOP, BIG])


@pytest.fixture
def store(root: Path, layout: Layout, tmp_path: Path) -> Iterator[Store]:
    """A store with that image, as `app`."""
    imported(root, layout.archive(tmp_path / "a.tar"), "app")
    with Store.open(str(root)) as store:
        yield store
    assert problems(root) == []
    assert litter(root) == []


def compression_of(method: str | None) -> Compression | None:
    return None if method is None else Compression(method)


def manifest(served: Served, version: str = "1") -> dict[str, Any]:
    value: dict[str, Any] = json.loads(served.manifests[version][0])
    return value


def sent(served: Served) -> int:
    """How many bytes of content were sent."""
    return sum(
        int(request.headers.get("content-length", 0))
        for request in served.requests
        if request.method in ("PUT", "PATCH") and "/uploads/" in request.path
    )


def same(served: Served, access: Access, store: Store, tmp_path: Path) -> None:
    """What was pushed is the image, for a store that has never seen it."""
    other = tmp_path / "other"
    with Store.open(str(other), create=True) as theirs:
        got = pull(theirs, f"{served.name}/a:1", access=access)
    ours = store.resolve("app")
    assert (got.id, got.chain_id) == (ours.id, ours.chain_id)
    assert problems(other) == []


@pytest.mark.parametrize("method", [None, "gzip", "zstd", "none"])
def test_what_is_pushed_is_the_image(
    served: Served, access: Access, store: Store, tmp_path: Path, method: str | None
) -> None:
    done = push(
        store, "app", f"{served.name}/a:1", access=access, compression=compression_of(method)
    )
    data, kind = served.manifests[done.digest]
    assert served.manifests["1"] == (data, kind)
    assert kind == MANIFEST
    suffix = {"none": "", "zstd": "+zstd"}.get(method or "", "+gzip")
    for layer in manifest(served)["layers"]:
        assert layer["mediaType"] == f"application/vnd.oci.image.layer.v1.tar{suffix}"
        assert len(served.blobs[layer["digest"]]) == layer["size"]
    same(served, access, store, tmp_path)


def test_a_second_time_nothing_is_sent(served: Served, access: Access, store: Store) -> None:
    first = push(store, "app", f"{served.name}/a:1", access=access)
    served.requests.clear()
    assert push(store, "app", f"{served.name}/a:2", access=access) == first
    assert sent(served) == 0
    assert served.paths("POST") == []


def test_blobs_that_are_there_keep_the_manifest(
    served: Served, access: Access, store: Store, layout: Layout
) -> None:
    digest = served.add(layout, "other")
    done = push(store, "app", f"{served.name}/a:1", access=access)
    assert (done.digest, done.is_original) == (digest, True)
    assert served.manifests["1"] == served.manifests["other"]
    assert sent(served) == 0


def test_plain_layers_keep_the_manifest(
    served: Served, access: Access, root: Path, tmp_path: Path
) -> None:
    layout = layout_of([BASE, TOP], compress="")
    imported(root, layout.archive(tmp_path / "a.tar"), "app")
    with Store.open(str(root)) as store:
        done = push(store, "app", f"{served.name}/a:1", access=access)
        assert done.digest == layout.index["manifests"][0]["digest"]
        assert done.is_original
        same(served, access, store, tmp_path)


def test_mounted_from_the_repository_it_was_pulled_from(
    served: Served, access: Access, root: Path, layout: Layout
) -> None:
    digest = served.add(layout, "1")
    with Store.open(str(root), create=True) as store:
        pull(store, f"{served.name}/from/here:1", "app", access=access)
        served.mountable, served.blobs = served.blobs, {}
        del served.mountable[digest_of(layout.blobs[digest])]
        served.requests.clear()
        done = push(store, "app", f"{served.name}/to/there:1", access=access)
    assert (done.digest, done.is_original) == (digest, True)
    assert sent(served) == 0
    (path, *_) = served.paths("POST")
    assert path.startswith("/v2/to/there/blobs/uploads/?mount=sha256%3A") or "mount=sha256:" in path
    assert path.endswith("&from=from%2Fhere")


def test_a_registry_that_does_not_mount(
    served: Served, access: Access, root: Path, layout: Layout, tmp_path: Path
) -> None:
    served.add(layout, "1")
    with Store.open(str(root), create=True) as store:
        pull(store, f"{served.name}/from/here:1", "app", access=access)
        served.blobs.clear()
        push(store, "app", f"{served.name}/a:1", access=access)
        assert served.uploads == {}  # none that was offered instead is left open
        same(served, access, store, tmp_path)


def test_an_image_without_manifest(
    served: Served, access: Access, root: Path, tmp_path: Path
) -> None:
    imported(root, docker_archive(tmp_path / "a.tar", [BASE, TOP]), "app")
    with Store.open(str(root)) as store:
        push(store, "app", f"{served.name}/a:1", access=access)
        same(served, access, store, tmp_path)


def test_the_same_layer_twice(served: Served, access: Access, root: Path, tmp_path: Path) -> None:
    imported(root, layout_of([BASE, TOP, BASE]).archive(tmp_path / "a.tar"), "app")
    with Store.open(str(root)) as store:
        push(store, "app", f"{served.name}/a:1", access=access)
        digests = [layer["digest"] for layer in manifest(served)["layers"]]
        assert digests[0] == digests[2] != digests[1]
        same(served, access, store, tmp_path)


def test_kept_blobs_keep_the_manifest(
    served: Served, access: Access, root: Path, layout: Layout, tmp_path: Path
) -> None:
    with Store.open(str(root), create=True) as store:
        store.import_image(layout.archive(tmp_path / "a.tar"), "app", keep_blobs=True)
        done = push(store, "app", f"{served.name}/a:1", access=access)
        assert (done.digest, done.is_original) == (layout.index["manifests"][0]["digest"], True)
        same(served, access, store, tmp_path)


def test_blobs_are_kept_of_what_is_pulled(
    served: Served, access: Access, root: Path, layout: Layout
) -> None:
    digest = served.add(layout, "1")
    with Store.open(str(root), create=True) as store:
        # Also of layers that the store has.
        pull(store, f"{served.name}/a:1", access=access)
        pull(store, f"{served.name}/a:1", access=access, keep_blobs=True)
        served.blobs.clear()
        assert push(store, "a:1", f"{served.name}/b:1", access=access).digest == digest
    assert problems(root) == []


def test_export_knows_registries(
    served: Served, root: Path, home: Path, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    (home / "registries.conf").write_text(
        f'[[registry]]\nlocation = "{served.name}"\ninsecure = true\n'
    )
    command = ["--root", str(root), "export", "app", f"docker://{served.name}/a:1"]
    assert run([*command, "--compress", "zstd", "--compress-level", "1"]) == 0
    assert capfd.readouterr().out.strip() == digest_of(served.manifests["1"][0])
    assert run([*command, "--compress", "zstd", "--compress-level", "99"]) == 1
    assert "has levels 1 to 22, not 99" in capfd.readouterr().err


# --- what may pass


@pytest.mark.parametrize("chunk", [1 << 20, 64 << 20])
@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT"])
def test_an_upload_that_breaks_goes_on(
    served: Served,
    access: Access,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chunk: int,
    method: str,
) -> None:
    monkeypatch.setattr(uploads, "CHUNK_SIZE", chunk)
    broken: list[str] = []

    def rule(handler: Handler, request: Request) -> bool:
        if request.method != method or "/uploads/" not in request.path or len(broken) > 1:
            return False
        broken.append(request.path)
        if len(broken) == 1:
            handler.reply(503)
        else:
            # Half of it arrives.
            number = request.path.partition("?")[0].rpartition("/")[2]
            if number in served.uploads:
                served.uploads[number] += handler.body[: len(handler.body) // 2]
            handler.hang_up()
        return True

    served.rules.append(rule)
    push(store, "app", f"{served.name}/a:1", access=access, compression=Compression("none"))
    assert len(broken) == (0 if method == "PATCH" and chunk > len(BIG) else 2)
    served.rules.clear()
    same(served, access, store, tmp_path)


def test_only_the_answer_is_lost(
    served: Served, access: Access, store: Store, tmp_path: Path
) -> None:
    lost: list[str] = []

    def rule(handler: Handler, request: Request) -> bool:
        if request.method != "PUT" or lost or "/uploads/" not in request.path:
            return False
        lost.append(request.path)
        handler.reply = lambda *_: handler.hang_up()  # type: ignore[method-assign]
        return False

    served.rules.append(rule)
    push(store, "app", f"{served.name}/a:1", access=access)
    starts = [path for path in served.paths("POST") if path.endswith("/uploads/")]
    assert len(starts) == 4  # three layers and the config, none of them twice
    same(served, access, store, tmp_path)


def test_a_large_layer_goes_in_pieces(
    served: Served,
    access: Access,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uploads, "CHUNK_SIZE", 1 << 20)
    push(store, "app", f"{served.name}/a:1", access=access, compression=Compression("none"))
    ranges = served.sent("content-range")
    assert ranges[:3] == ["0-1048575", "1048576-2097151", "2097152-3145727"]
    same(served, access, store, tmp_path)


# --- what does not


def failed(store: Store, served: Served, access: Access, said: str, reference: str = "a:1") -> None:
    """A push that fails, in one line, and leaves no manifest."""
    before = dict(served.manifests)
    with pytest.raises(StoreError) as error:
        push(store, "app", f"{served.name}/{reference}", access=access)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert served.manifests == before


@pytest.mark.parametrize(
    ("method", "status", "said"),
    [
        ("HEAD", 403, "access is denied"),
        ("POST", 403, "access is denied"),
        ("PUT", 400, "answers with status 400: DIGEST_INVALID"),
        ("PUT", 413, "answers with status 413"),
        ("PUT", 500, "answers with status 500"),
        ("POST", 201, "answers with status 201"),
        ("POST", 202, "does not say where to upload to"),
    ],
)
def test_refusals(
    served: Served, hasty: Access, store: Store, method: str, status: int, said: str
) -> None:
    def rule(handler: Handler, request: Request) -> bool:
        if request.method != method:
            return False
        handler.reply(status, b'{"errors": [{"code": "DIGEST_INVALID"}]}')
        return True

    served.rules.append(rule)
    failed(store, served, hasty, said)


def test_credentials_do_not_follow_an_upload(served: Served, hasty: Access, store: Store) -> None:
    """The place to upload to may be another host; it gets content, and no credentials."""
    from tests.layerstore.registry.served import serving

    with serving() as other:

        def rule(handler: Handler, request: Request) -> bool:
            if "authorization" not in request.headers:
                handler.reply(401, b"", {"WWW-Authenticate": "Basic realm=x"})
            elif request.method == "POST":
                handler.reply(202, b"", {"Location": f"http://{other.name}/uploads/0"})
            else:
                return False
            return True

        served.rules.append(rule)
        access = dataclasses.replace(hasty, credentials=parse_credentials("me:secret"))
        failed(store, served, access, "is not there")
        assert other.paths("PUT")
        assert other.sent("authorization") == []


def test_a_stall(served: Served, impatient: Access, store: Store) -> None:
    def rule(handler: Handler, request: Request) -> bool:
        if request.method != "PUT":
            return False
        served.stop.wait()
        return True

    served.rules.append(rule)
    failed(store, served, impatient, "nothing came for 0.5 seconds")


def test_interrupted_while_a_registry_stalls(served: Served, store: Store, root: Path) -> None:
    asked = threading.Event()

    def rule(handler: Handler, request: Request) -> bool:
        if request.method != "PUT":
            return False
        asked.set()
        served.stop.wait()
        return True

    served.rules.append(rule)
    command = [sys.executable, "-m", "layerstore", "--root", str(root), "push", "--insecure", "app"]
    with subprocess.Popen([*command, f"{served.name}/a:1"], stderr=subprocess.PIPE) as running:
        assert asked.wait(60)
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
        assert running.stderr is not None
        assert running.stderr.read() == b"layerstore: interrupted\n"
    assert served.manifests == {}


def test_a_digest_that_it_has_not(served: Served, access: Access, store: Store) -> None:
    other = "sha256:" + "0" * 64
    failed(store, served, access, "the manifest has the digest sha256:", f"a@{other}")


def test_a_manifest_that_is_taken_for_another(served: Served, access: Access, store: Store) -> None:
    headers = {"Docker-Content-Digest": "sha256:" + "0" * 64}

    def rule(handler: Handler, request: Request) -> bool:
        if request.method != "PUT" or "/manifests/" not in request.path:
            return False
        handler.reply(201, b"", headers)
        return True

    served.rules.append(rule)
    failed(store, served, access, "for a manifest sha256:000")


def test_the_command(
    served: Served, store: Store, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["--root", str(root), "push", "--insecure", "app", f"docker://{served.name}/a:1"]
    assert run(command) == 0
    out, err = capfd.readouterr()
    assert (out.strip(), err) == (digest_of(served.manifests["1"][0]), "")
    assert run([*command, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["manifest"] == out.strip()
    assert run(["--root", str(root), "push", "nothing", served.name + "/a"]) == 1
    assert "no such image" in capfd.readouterr().err
