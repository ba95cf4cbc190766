"""Pull: from a registry that does as it should, in all the ways that may be."""

from __future__ import annotations

import base64
import dataclasses
import gc
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from layerstore.cli import run
from layerstore.errors import StoreError
from layerstore.registry.access import Access
from layerstore.registry.credentials import parse_credentials
from layerstore.registry.images import pull
from layerstore.registry.patience import parse_retry_after
from layerstore.store import Image, Store
from tests.layerstore.archives import Item, Layout, digest_of, gzipped, layout_of, tar_of
from tests.layerstore.registry.served import (
    INDEX,
    MANIFEST,
    Handler,
    Request,
    Rule,
    Served,
    serving,
)
from tests.layerstore.stores import BASE, TOP, imported, litter, problems

BIG = tar_of([Item("big", os.urandom(3 << 20))])


def pulled(root: Path, reference: str, access: Access, platform: str | None = None) -> Image:
    """Pull into a store that may not be there yet; checks it afterwards."""
    with Store.open(str(root), create=True) as store:
        image = pull(store, reference, access=access, platform=platform)
    assert problems(root) == []
    assert litter(root) == []
    return image


def blobs(served: Served) -> list[str]:
    return [path.rpartition("/")[2] for path in served.paths() if "/blobs/" in path]


@pytest.mark.parametrize("compress", ["gzip", "zstd", ""])
def test_the_image_is_the_same_as_imported(
    served: Served, access: Access, root: Path, tmp_path: Path, compress: str
) -> None:
    layout = layout_of([BASE, TOP, BIG], compress=compress)
    served.add(layout, "1")
    image = pulled(root, f"{served.name}/a/b:1", access)
    same = imported(tmp_path / "other", layout.archive(tmp_path / "a.tar"))
    assert (image.id, image.chain_id, image.manifest) == (same.id, same.chain_id, same.manifest)
    assert image.tags == [f"{served.name}/a/b:1"]
    assert image.source == f"docker://{served.name}/a/b:1"


def test_layers_in_the_store_are_not_downloaded(served: Served, access: Access, root: Path) -> None:
    served.add(layout_of([BASE]), "base")
    served.add(layout_of([BASE, TOP], compress="zstd"), "both")
    pulled(root, f"{served.name}/a:base", access)
    assert len(blobs(served)) == 2
    served.requests.clear()
    pulled(root, f"{served.name}/a:both", access)
    assert len(blobs(served)) == 2  # the config, and the layer on top
    served.requests.clear()
    pulled(root, f"{served.name}/a:both", access)
    assert len(blobs(served)) == 1


def test_the_same_layer_twice_is_downloaded_once(
    served: Served, access: Access, root: Path
) -> None:
    served.add(layout_of([BASE, TOP, BASE]), "1")
    pulled(root, f"{served.name}/a:1", access)
    assert len(blobs(served)) == 3


def test_by_digest_and_by_both(served: Served, access: Access, root: Path) -> None:
    digest = served.add(layout_of([BASE]), "1")
    assert pulled(root, f"{served.name}/a@{digest}", access).tags == []
    assert pulled(root, f"{served.name}/a:name@{digest}", access).tags == [f"{served.name}/a:name"]
    assert not [path for path in served.paths() if path.endswith(("/1", "/name"))]


def test_import_knows_registries(
    served: Served, root: Path, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    served.add(layout_of([BASE]), "latest")
    (home / "registries.conf").write_text(
        f'[[registry]]\nprefix = "example.com"\nlocation = "{served.name}"\ninsecure = true\n'
    )
    status = run(["--root", str(root), "import", "docker://example.com/a", "-t", "mine"])
    assert (status, capfd.readouterr().err) == (0, "")
    with Store.open(str(root)) as store:
        assert store.resolve("mine").source == "docker://example.com/a:latest"


def test_the_command(served: Served, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    served.add(layout_of([BASE]), "1")
    zipped = gzipped(BASE)
    reference = f"docker://{served.name}/a:1"
    assert run(["--root", str(root), "pull", "--insecure", reference, "-t", "x"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("sha256:")
    assert out.endswith(" x:latest\n")
    assert err == f"fetched {len(zipped)} B of layers\n"
    assert run(["--root", str(root), "--json", "pull", "--insecure", reference]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["tags"] == [f"{served.name}/a:1", "x:latest"]
    assert (json.loads(out)["fetched"], json.loads(out)["spared"], err) == (0, len(zipped), "")
    assert run(["--root", str(root), "pull", "--insecure", reference]) == 0
    assert capfd.readouterr().err == f"fetched 0 B of layers; {len(zipped)} B were there\n"


@pytest.mark.parametrize(
    "option", [["--retry", "-1"], ["--timeout", "0"], ["--timeout", "x"], ["--jobs", "0"]]
)
def test_options_that_cannot_be(option: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        run(["pull", *option, "x"])
    assert error.value.code == 2
    assert "usage: layerstore pull" in capfd.readouterr().err


# --- platforms


def index_of(served: Served, **layouts: Layout) -> None:
    """Serve an index as `latest`; the names are architectures."""
    manifests = []
    for architecture, layout in layouts.items():
        digest = served.add(layout, architecture)
        platform = {"os": "linux", "architecture": architecture}
        size = len(layout.blobs[digest])
        manifests.append(
            {"mediaType": MANIFEST, "digest": digest, "size": size, "platform": platform}
        )
    served.add_manifest({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}, INDEX)


def test_platforms(served: Served, access: Access, root: Path) -> None:
    ours = layout_of([BASE])
    theirs = layout_of([TOP], config={"architecture": "arm64"})
    index_of(served, arm64=theirs, amd64=ours)
    name = f"{served.name}/a"
    arm = pulled(root, name, access, "linux/arm64")
    assert arm.config["architecture"] == "arm64"
    assert pulled(root, name, access, "linux/amd64").config["architecture"] == "amd64"
    with pytest.raises(
        StoreError, match="no image for linux/s390x; it has linux/arm64, linux/amd64"
    ):
        pulled(root, name, access, "linux/s390x")
    with pytest.raises(StoreError, match="is an image for linux/arm64, not for linux/amd64"):
        pulled(root, f"{name}:arm64", access, "linux/amd64")


def test_docker_types(served: Served, access: Access, root: Path) -> None:
    docker = "application/vnd.docker"
    layout = Layout()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest_of(BASE)]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{docker}.distribution.manifest.v2+json",
        "config": layout.add_json(config, f"{docker}.container.image.v1+json"),
        "layers": [layout.add(BASE, f"{docker}.image.rootfs.diff.tar.gzip")],
    }
    kind = f"{docker}.distribution.manifest.v2+json"
    layout.index = {"manifests": [layout.add_json(manifest, kind)]}
    digest = served.add(layout, "v2")
    platform = {"os": "linux", "architecture": "amd64"}
    size = len(layout.blobs[digest])
    kind = f"{docker}.distribution.manifest.list.v2+json"
    entry = {"digest": digest, "size": size, "platform": platform}
    served.add_manifest({"schemaVersion": 2, "mediaType": kind, "manifests": [entry]}, kind)
    assert pulled(root, f"{served.name}/a", access, "linux/amd64").layers[0].diff_id == digest_of(
        BASE
    )


# --- what may pass


def fail_once(served: Served, part: str, answer: Callable[[Handler], None]) -> None:
    """Misbehave at the first request whose path has this part."""

    def rule(handler: Handler, request: Request) -> bool:
        if part not in request.path:
            return False
        served.rules.remove(rule)
        answer(handler)
        return True

    served.rules.append(rule)


@pytest.mark.parametrize("part", ["/manifests/", "/blobs/"])
@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_errors_that_pass(
    served: Served, access: Access, root: Path, part: str, status: int
) -> None:
    served.add(layout_of([BASE]), "1")
    fail_once(served, part, lambda handler: handler.reply(status, b"busy"))
    pulled(root, f"{served.name}/a:1", access)


def test_retry_after_is_honoured(served: Served, access: Access, root: Path) -> None:
    served.add(layout_of([BASE]), "1")
    times: list[float] = []

    def rule(handler: Handler, request: Request) -> bool:
        times.append(time.monotonic())
        if len(times) > 1:
            return False
        handler.reply(429, b"", {"Retry-After": "1"})
        return True

    served.rules.append(rule)
    pulled(root, f"{served.name}/a:1", access)
    assert times[1] - times[0] >= 1


def test_what_retry_after_may_say() -> None:
    assert parse_retry_after("7") == 7
    assert parse_retry_after("Fri, 31 Dec 1999 23:59:59 GMT", 946684739.0) == 60
    assert parse_retry_after("Fri, 31 Dec 1999 23:59:59 GMT") == 0
    for value in (None, "", "-1", "soon", "\u0661", "Fri, 99 Dec 1999 23:59:59 GMT"):
        assert parse_retry_after(value) is None


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_broken_download_goes_on_where_it_was(
    served: Served, access: Access, root: Path, has_ranges: bool
) -> None:
    layout = layout_of([BIG], compress="")
    served.add(layout, "1")
    served.has_ranges = has_ranges
    cut = 2 << 20

    def rule(handler: Handler, request: Request) -> bool:
        if not request.path.endswith(digest_of(BIG)):
            return False
        served.rules.remove(rule)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(BIG)))
        handler.end_headers()
        handler.wfile.write(BIG[:cut])
        handler.hang_up()
        return True

    served.rules.append(rule)
    pulled(root, f"{served.name}/a:1", access)
    assert served.sent("range") == [f"bytes={cut}-"]


def test_many_breaks_are_no_failure_while_it_goes_on(
    served: Served, access: Access, root: Path
) -> None:
    served.add(layout_of([BIG], compress=""), "1")
    cut = 400 << 10

    def rule(handler: Handler, request: Request) -> bool:
        if not request.path.endswith(digest_of(BIG)):
            return False
        start = int(request.headers.get("range", "bytes=0-")[6:-1])
        if len(BIG) - start <= cut:
            return False
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(BIG) - start))
        handler.send_header("Content-Range", f"bytes {start}-{len(BIG) - 1}/{len(BIG)}")
        handler.end_headers()
        handler.wfile.write(BIG[start : start + cut])
        handler.hang_up()
        return True

    served.rules.append(rule)
    pulled(root, f"{served.name}/a:1", access)
    assert len(served.sent("range")) == len(BIG) // cut


def test_layers_come_side_by_side(served: Served, access: Access, root: Path) -> None:
    layers = [tar_of([Item(f"f{number}", os.urandom(1000))]) for number in range(8)]
    layout = layout_of(layers, compress="")
    served.add(layout, "1")
    together = threading.Barrier(3, timeout=10)
    most: list[int] = []
    lock = threading.Lock()
    running = 0

    def rule(handler: Handler, request: Request) -> bool:
        nonlocal running
        if request.path.rpartition("/")[2] not in map(digest_of, layers):
            return False
        with lock:
            running += 1
            most.append(running)
            first = len(most) <= 3
        if first:
            together.wait()
        handler.answer_truly(request)
        with lock:
            running -= 1
        return True

    served.rules.append(rule)
    pulled(root, f"{served.name}/a:1", dataclasses.replace(access, jobs=3))
    assert max(most) == 3


# --- mirrors


def test_mirrors(served: Served, access: Access, root: Path) -> None:
    with serving() as empty, serving() as mirror:
        layout = layout_of([BASE, TOP])
        served.add(layout, "1")
        mirror.add(layout, "1")
        del mirror.blobs[digest_of_top(layout)]
        access = dataclasses.replace(access, mirrors=[f"{empty.name}/x", mirror.name])
        image = pulled(root, f"{served.name}/a:1", access)
        assert image.tags == [f"{served.name}/a:1"]
        assert empty.paths() == ["/v2/x/a/manifests/1"]
        # The blob that the mirror has not comes from the registry itself.
        assert blobs(served) == [digest_of_top(layout)]


def digest_of_top(layout: Layout) -> str:
    manifest = json.loads(layout.blobs[layout.index["manifests"][0]["digest"]])
    digest: str = manifest["layers"][-1]["digest"]
    return digest


def test_no_mirror_has_it(served: Served, access: Access, root: Path) -> None:
    with serving() as mirror:
        access = dataclasses.replace(access, mirrors=[mirror.name])
        with pytest.raises(StoreError) as error:
            pulled(root, f"{served.name}/a:1", access)
        assert served.name in str(error.value)
        assert mirror.name in str(error.value)


# --- authentication


def basic_only(user: str) -> Rule:
    """A rule: nothing without these credentials."""
    header = "Basic " + base64.b64encode(f"{user}:pw".encode()).decode()

    def rule(handler: Handler, request: Request) -> bool:
        if request.headers.get("authorization") == header:
            return False
        handler.reply(401, b"{}", {"WWW-Authenticate": 'Basic realm="x"'})
        return True

    return rule


def with_credentials(access: Access, text: str) -> Access:
    return dataclasses.replace(access, credentials=parse_credentials(text))


def test_basic(served: Served, access: Access, root: Path, home: Path) -> None:
    served.add(layout_of([BASE]), "1")
    served.rules.append(basic_only("me"))
    name = f"{served.name}/a:1"
    with pytest.raises(StoreError, match="wants a login: give --creds"):
        pulled(root, name, access)
    with pytest.raises(StoreError, match="does not take the credentials of me from the command"):
        pulled(root, name, with_credentials(access, "me:wrong"))
    pulled(root, name, with_credentials(access, "me:pw"))
    encoded = base64.b64encode(b"me:pw").decode()
    (home / "auth.json").write_text(json.dumps({"auths": {served.name: {"auth": encoded}}}))
    pulled(root, name, dataclasses.replace(access, authfile=str(home / "auth.json")))


class Tokens:
    """A rule: a registry that wants a token, and its token endpoint."""

    def __init__(self, served: Served, *, lives: int = 1000) -> None:
        self.served = served
        self.lives = lives
        self.given = 0
        self.left = 0
        self.asked: list[str] = []

    def __call__(self, handler: Handler, request: Request) -> bool:
        if request.path.startswith("/token"):
            self.asked.append(
                request.path + (handler.body.decode() if request.method == "POST" else "")
            )
            self.given, self.left = self.given + 1, self.lives
            answer = {"access_token" if self.given % 2 else "token": f"t{self.given}"}
            handler.reply(200, json.dumps(answer).encode())
            return True
        if request.headers.get("authorization") == f"Bearer t{self.given}" and self.left:
            self.left -= 1
            return False
        realm = f'Bearer realm="http://{self.served.name}/token?x=1",service="s",error="expired"'
        handler.reply(401, b"{}", {"WWW-Authenticate": realm})
        return True


def test_token(served: Served, access: Access, root: Path) -> None:
    served.add(layout_of([BASE]), "1")
    tokens = Tokens(served)
    served.rules.append(tokens)
    pulled(root, f"{served.name}/a/b:1", access)
    assert tokens.asked == ["/token?x=1&service=s&scope=repository%3Aa%2Fb%3Apull"]
    assert not [value for value in served.sent("authorization") if "Basic" in value]
    pulled(root, f"{served.name}/a/b:1", with_credentials(access, "me:pw"))
    assert tokens.asked[1].endswith("&account=me")
    basic = [r for r in served.requests if "Basic" in r.headers.get("authorization", "")]
    assert [request.path.partition("?")[0] for request in basic] == ["/token"]


def test_a_token_that_expires_is_renewed(served: Served, access: Access, root: Path) -> None:
    served.add(layout_of([BASE, TOP, BIG]), "1")
    tokens = Tokens(served, lives=2)
    served.rules.append(tokens)
    pulled(root, f"{served.name}/a:1", dataclasses.replace(access, jobs=1))
    assert tokens.given == 3


def test_identity_token(served: Served, access: Access, root: Path, home: Path) -> None:
    served.add(layout_of([BASE]), "1")
    tokens = Tokens(served)
    served.rules.append(tokens)
    path = home / "auth.json"
    path.write_text(json.dumps({"auths": {served.name: {"identitytoken": "idt"}}}))
    pulled(root, f"{served.name}/a:1", dataclasses.replace(access, authfile=str(path)))
    (asked,) = tokens.asked
    assert "grant_type=refresh_token&refresh_token=idt&client_id=layerstore" in asked
    assert "scope=repository%3Aa%3Apull" in asked


def test_a_redirect_is_followed_without_credentials(
    served: Served, access: Access, root: Path
) -> None:
    with serving() as elsewhere:
        layout = layout_of([BASE, TOP])
        served.add(layout, "1")
        elsewhere.blobs.update(layout.blobs)

        def to_elsewhere(handler: Handler, request: Request) -> bool:
            if "/blobs/" not in request.path:
                return False
            location = f"http://user:pw@{elsewhere.name}{request.path}?signature=x"
            handler.reply(307, b"", {"Location": location})
            return True

        def without_query(handler: Handler, request: Request) -> bool:
            request.path = request.path.partition("?")[0]
            return False

        served.rules += [basic_only("me"), to_elsewhere]
        elsewhere.rules.append(without_query)
        pulled(root, f"{served.name}/a:1", with_credentials(access, "me:pw"))
        assert served.sent("authorization")
        assert len(elsewhere.paths()) == 3
        assert elsewhere.sent("authorization") == []


def test_nothing_is_left_open(served: Served, access: Access, root: Path) -> None:
    served.add(layout_of([BASE]), "1")
    pulled(root, f"{served.name}/a:1", access)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    pulled(root, f"{served.name}/a:1", access)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert not [thread for thread in threading.enumerate() if thread.name == "registry"]
