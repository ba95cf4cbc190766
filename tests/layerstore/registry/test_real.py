"""The registry that people run, with skopeo on the other side."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerstore.cli import run
from layerstore.registry import uploads
from layerstore.store import Store
from tests.layerstore.archives import Item, layout_of, tar_of
from tests.layerstore.chunked import trimmed
from tests.layerstore.registry.docker import (
    PASSWORD,
    USER,
    DockerRegistry,
    docker_registry,
    needs_registry,
    skopeo,
    skopeo_push,
)
from tests.layerstore.stores import BASE, TOP, imported, litter, problems

pytestmark = needs_registry
BASE_TRIMMED = trimmed(BASE)


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[DockerRegistry]:
    (tmp_path / "plain").mkdir()
    with docker_registry(tmp_path / "plain") as it:
        yield it


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[DockerRegistry]:
    """With basic authentication and TLS."""
    (tmp_path / "closed").mkdir()
    with docker_registry(tmp_path / "closed", authentication=True, tls=True) as it:
        yield it


@pytest.mark.parametrize(
    "options",
    [
        ["--format=v2s2"],
        ["--format=oci", "--dest-compress-format=zstd"],
        ["--format=oci", "--dest-decompress"],
    ],
)
def test_what_skopeo_pushed(
    plain: DockerRegistry, root: Path, tmp_path: Path, options: list[str]
) -> None:
    source = layout_of([BASE, TOP]).archive(tmp_path / "a.tar")
    if "--dest-decompress" in options:
        source, options = (
            layout_of([BASE, TOP], compress="").archive(tmp_path / "b.tar"),
            options[:1],
        )
    skopeo_push(plain, source, "some/where:1", *options)
    reference = f"{plain.name}/some/where:1"
    assert run(["--root", str(root), "pull", "--insecure", reference]) == 0
    same = imported(tmp_path / "other", source)
    with Store.open(str(root)) as store:
        image = store.resolve(reference)
    assert [layer.diff_id for layer in image.layers] == [layer.diff_id for layer in same.layers]
    assert image.chain_id == same.chain_id
    assert problems(root) == []
    assert litter(root) == []


def test_files_that_are_there_are_not_fetched(
    plain: DockerRegistry, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """zstd:chunked as skopeo writes it, several ranges a request as docker-registry answers."""
    files = {f"f{number}": os.urandom(10_000) for number in range(60)}
    later = files | {f"f{number}": os.urandom(10_000) for number in (3, 4, 30)}
    for tag, content in (("1", files), ("2", later)):
        tar = trimmed(tar_of(Item(name, data, mtime=1.5) for name, data in content.items()))
        source = layout_of([BASE_TRIMMED, tar], compress="").archive(tmp_path / f"{tag}.tar")
        skopeo_push(
            plain, source, f"a:{tag}", "--format=oci", "--dest-compress-format=zstd:chunked"
        )
    pull = ["--json", "pull", "--insecure"]
    assert run(["--root", str(root), *pull, f"{plain.name}/a:1"]) == 0
    first = json.loads(capfd.readouterr().out)
    assert (first["spared"], first["fetched"] > 600_000) == (0, True)
    assert run(["--root", str(root), *pull, f"{plain.name}/a:2"]) == 0
    second = json.loads(capfd.readouterr().out)
    # Beside the files: headers, table, heads of parts.
    assert 30_000 < second["fetched"] < 30_000 + 25_000
    other = str(tmp_path / "other")
    for tag in ("1", "2"):
        assert run(["--root", other, *pull, "--no-partial", f"{plain.name}/a:{tag}"]) == 0
        whole = json.loads(capfd.readouterr().out)
    assert (whole["id"], whole["layers"]) == (second["id"], second["layers"])
    assert whole["fetched"] + whole["spared"] == second["fetched"] + second["spared"]
    for kind in ("layers", "images"):
        names = sorted(os.listdir(root / kind))
        assert names == sorted(os.listdir(f"{other}/{kind}"))
        for name in names:
            assert (root / kind / name).read_bytes() == Path(other, kind, name).read_bytes()
    assert problems(root) == []
    assert litter(root) == []


def test_what_is_not_there(
    plain: DockerRegistry, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["--root", str(root), "pull", "--insecure", f"{plain.name}/no/such:1"]) == 1
    said = capfd.readouterr().err
    assert "no/such/manifests/1: is not there: manifest unknown" in said
    assert said.count("\n") == 1


def test_tls_and_basic_authentication(
    closed: DockerRegistry,
    root: Path,
    home: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = layout_of([BASE, TOP]).archive(tmp_path / "a.tar")
    skopeo_push(closed, source, "a:1", f"--dest-creds={USER}:{PASSWORD}")
    pull = ["--root", str(root), "pull", f"{closed.name}/a:1"]
    creds = ["--creds", f"{USER}:{PASSWORD}"]

    def said(*options: str) -> str:
        assert run([*pull, *options]) == 1
        text = capfd.readouterr().err
        assert text.count("\n") == 1
        assert PASSWORD not in text
        return text

    assert "its certificate is not trusted" in said(*creds)
    trusted = ["--cert-dir", str(closed.authority)]
    assert "wants a login: give --creds" in said(*trusted)
    assert "does not take the credentials of tester" in said(*trusted, "--creds", f"{USER}:x")
    assert run([*pull, *trusted, *creds]) == 0
    # Nobody is between this machine and itself.
    assert run([*pull, "--insecure", *creds]) == 0
    monkeypatch.setenv("SSL_CERT_FILE", f"{closed.authority}/ca.crt")
    assert run([*pull, *creds]) == 0
    monkeypatch.delenv("SSL_CERT_FILE")
    directory = home / ".config/containers/certs.d" / closed.name
    directory.parent.mkdir(parents=True)
    assert closed.authority is not None
    directory.symlink_to(closed.authority)
    encoded = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (home / "run/containers").mkdir(parents=True)
    auths = {"auths": {closed.name: {"auth": encoded}}}
    (home / "run/containers/auth.json").write_text(json.dumps(auths))
    assert run(pull) == 0


def test_certificates_that_are_none(
    closed: DockerRegistry, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "certs"
    pull = ["--root", str(root), "pull", f"{closed.name}/a:1", "--cert-dir", str(directory)]

    def said() -> str:
        assert run(pull) == 1
        text = capfd.readouterr().err
        assert text.count("\n") == 1
        return text

    assert "there is no such directory of certificates" in said()
    directory.mkdir()
    assert "its certificate is not trusted" in said()
    (directory / "x.crt").write_text("nonsense")
    assert "x.crt: cannot be used as a certificate" in said()
    (directory / "x.crt").unlink()
    (directory / "x.cert").write_text("nonsense")
    assert "x.cert" in said()


def test_a_registry_without_tls_says_what_to_do(
    plain: DockerRegistry, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["--root", str(root), "pull", f"{plain.name}/a:1", "--timeout", "5"]) == 1
    said = capfd.readouterr().err
    # A server without TLS may also wait for the end of what it takes for a request.
    assert "it may speak plain http, which --insecure allows" in said or "nothing came" in said


@pytest.mark.parametrize("method", ["gzip", "zstd", "none"])
def test_what_is_pushed_skopeo_takes(
    closed: DockerRegistry, root: Path, tmp_path: Path, method: str
) -> None:
    image = imported(root, layout_of([BASE, TOP]).archive(tmp_path / "a.tar"), "app")
    options = ["--creds", f"{USER}:{PASSWORD}", "--cert-dir", str(closed.authority)]
    reference = f"{closed.name}/some/where:1"
    push = ["--root", str(root), "push", "app", reference, "--compress", method, *options]
    assert run(push) == 0
    skopeo(
        "copy", "--quiet", "--src-tls-verify=false", f"--src-creds={USER}:{PASSWORD}",
        f"docker://{reference}", f"oci-archive:{tmp_path}/back.tar",
    )  # fmt: skip
    back = imported(tmp_path / "other", f"oci-archive:{tmp_path}/back.tar")
    assert (back.id, back.chain_id) == (image.id, image.chain_id)


def test_pushed_back_it_is_the_same(
    plain: DockerRegistry, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    skopeo_push(plain, layout_of([BASE, TOP]).archive(tmp_path / "a.tar"), "one/place:1")
    first = f"{plain.name}/one/place:1"
    assert run(["--root", str(root), "pull", "--insecure", first, "-t", "app"]) == 0
    capfd.readouterr()
    for place in ("one/place:2", "another:1"):  # the second gets its blobs from the first
        assert run(["--root", str(root), "push", "--insecure", "app", f"{plain.name}/{place}"]) == 0
        name = f"docker://{plain.name}/{place}"
        there = skopeo("inspect", "--tls-verify=false", "--format={{.Digest}}", name)
        before = skopeo(
            "inspect", "--tls-verify=false", "--format={{.Digest}}", f"docker://{first}"
        )
        assert there == before == capfd.readouterr().out


def test_a_large_layer_in_pieces(
    plain: DockerRegistry, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "CHUNK_SIZE", 1 << 20)
    tar = tar_of([Item("big", os.urandom(5 << 20))])
    image = imported(root, layout_of([tar]).archive(tmp_path / "a.tar"), "app")
    reference = f"{plain.name}/a:1"
    command = ["--root", str(root), "push", "--insecure", "app", reference, "--compress=none"]
    assert run(command) == 0
    assert run(["--root", str(tmp_path / "other"), "pull", "--insecure", reference]) == 0
    with Store.open(str(tmp_path / "other")) as store:
        assert store.resolve(reference).id == image.id
