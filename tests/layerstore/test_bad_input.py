"""Images that are not what they should be: refused whole, in one line that says what and where."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerstore.cli import run
from layerstore.errors import StoreError
from layerstore.oci.sources import open_source
from layerstore.store import Store
from tests.layerstore.archives import (
    OCI,
    Item,
    Layout,
    digest_of,
    docker_archive,
    gzipped,
    layout_of,
    tar_of,
    zstandard_of,
)
from tests.layerstore.stores import BASE, TOP, image_ids, imported, litter


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def without(layout: Layout, digest: str) -> Layout:
    """The layout with a blob missing."""
    del layout.blobs[digest]
    return layout


def manifest_of(layout: Layout) -> dict[str, Any]:
    """The manifest of a layout of one image."""
    value: dict[str, Any] = json.loads(layout.blobs[layout.index["manifests"][0]["digest"]])
    return value


def with_manifest(layout: Layout, change: Callable[[dict[str, Any]], None]) -> Layout:
    """The layout with its manifest changed, and its digest with it."""
    manifest = manifest_of(layout)
    change(manifest)
    kind = layout.index["manifests"][0]["mediaType"]
    layout.index["manifests"] = [layout.add_json(manifest, kind)]
    return layout


def with_blob(layout: Layout, digest: str, data: bytes) -> Layout:
    """The layout with other bytes under a digest."""
    layout.blobs[digest] = data
    return layout


def simple() -> Layout:
    """An image of one layer."""
    return layout_of([BASE])


def first_layer(layout: Layout) -> str:
    digest: str = manifest_of(layout)["layers"][0]["digest"]
    return digest


def change_layer(**fields: Any) -> Layout:
    return with_manifest(simple(), lambda manifest: manifest["layers"][0].update(fields))


def config_with(**fields: Any) -> Layout:
    return layout_of([BASE], config=fields)


def cycle() -> Layout:
    layout = simple()
    index: dict[str, Any] = {"schemaVersion": 2, "manifests": layout.index["manifests"]}
    for _ in range(12):
        index = {
            "schemaVersion": 2,
            "manifests": [layout.add_json(index, f"{OCI}.index.v1+json")],
        }
    layout.index = index
    return layout


def damaged(data: bytes) -> bytes:
    return data[:-20] + bytes(byte ^ 0x55 for byte in data[-20:-10]) + data[-10:]


PACKED = gzipped(BASE)

BAD_LAYOUTS: dict[str, tuple[Callable[[], Layout], str]] = {
    "no version": (lambda: Layout(version=None, index=simple().index), "no OCI image layout"),
    "other version": (lambda: Layout(version='{"imageLayoutVersion": "2"}'), "version '2'"),
    "version is no JSON": (lambda: Layout(version="{"), "oci-layout is not valid JSON"),
    "no manifests": (lambda: Layout(index={"manifests": 5}), "no list of manifests"),
    "empty index": (lambda: Layout(index={"manifests": []}), "which image"),
    "descriptor without digest": (
        lambda: Layout(index={"manifests": [{"mediaType": f"{OCI}.manifest.v1+json"}]}),
        "no SHA-256 digest",
    ),
    "sha512": (
        lambda: Layout(index={"manifests": [{"digest": "sha512:" + "0" * 128, "size": 1}]}),
        "is not SHA-256",
    ),
    "manifest missing": (
        lambda: without(simple(), simple().index["manifests"][0]["digest"]),
        "the manifest is missing",
    ),
    "manifest damaged": (
        lambda: with_blob(simple(), simple().index["manifests"][0]["digest"], b"{}"),
        "the manifest sha256:[0-9a-f]* is damaged",
    ),
    "manifest is a list": (
        lambda: Layout(
            index={"manifests": [simple().add(b"[]", "x")]}, blobs={digest_of(b"[]"): b"[]"}
        ),
        "is not a JSON object",
    ),
    "cyclic index": (cycle, "in a circle"),
    "schema 1": (
        lambda: with_manifest(
            simple(),
            lambda m: m.update(mediaType="application/vnd.docker.distribution.manifest.v1+json"),
        ),
        "manifest.v1.json', which is no image",
    ),
    "artifact": (
        lambda: with_manifest(
            simple(), lambda m: m["config"].update(mediaType="application/vnd.cncf.helm.config")
        ),
        "an artifact, not a container image",
    ),
    "config missing": (
        lambda: without(simple(), manifest_of(simple())["config"]["digest"]),
        "the config is missing",
    ),
    "config damaged": (
        lambda: with_blob(simple(), manifest_of(simple())["config"]["digest"], b"{}"),
        "the config .* is damaged",
    ),
    "no diff ids": (lambda: config_with(rootfs={"diff_ids": ["sha256:x"]}), "no rootfs.diff_ids"),
    "too few diff ids": (
        lambda: config_with(rootfs={"diff_ids": []}),
        "1 layers, the config 0",
    ),
    "other diff id": (
        lambda: config_with(rootfs={"diff_ids": [digest_of(b"x")]}),
        "its uncompressed digest is sha256:[0-9a-f]*, the config says",
    ),
    "layer type": (
        lambda: change_layer(mediaType=f"{OCI}.layer.v1.squashfs"),
        "squashfs', which is no layer",
    ),
    "layer type missing": (lambda: change_layer(mediaType=None), "None, which is no layer"),
    "layer missing": (lambda: without(simple(), first_layer(simple())), "is missing"),
    "layer size lies": (lambda: change_layer(size=5), "the manifest says 5: cut short or damaged"),
    "layer size is negative": (lambda: change_layer(size=-5), "no SHA-256 digest and size"),
    "layer cut": (
        lambda: with_blob(simple(), digest_of(PACKED), PACKED[:-30]),
        "cut short",
    ),
    "layer empty": (lambda: with_blob(simple(), digest_of(PACKED), b""), "has 0 bytes"),
    "layer damaged": (
        lambda: with_blob(simple(), digest_of(PACKED), damaged(PACKED)),
        "damaged",
    ),
    "layer swapped": (
        lambda: with_blob(
            layout_of([BASE], compress=""), digest_of(BASE), BASE.replace(b"base", b"evil")
        ),
        "its digest is .*, the manifest says .* damaged; get it again",
    ),
    "zstd cut": (
        lambda: with_blob(
            layout_of([BASE], compress="zstd"),
            digest_of(zstandard_of(BASE)),
            zstandard_of(BASE)[:-30],
        ),
        "cut short",
    ),
    "layer is no tar": (lambda: layout_of([b"not a tar" * 100]), "no tar header"),
    "second layer bad": (lambda: layout_of([BASE, tar_of([Item("../x")])]), "leads upwards"),
}


def refused(root: Path, source: str, capfd: pytest.CaptureFixture[str], message: str) -> None:
    """Check that an import says `message` in one line and leaves nothing."""
    before = image_ids(root)
    assert run(["--root", str(root), "import", source, "--tag", "bad"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("layerstore: ")
    assert re.search(message, err), err
    assert image_ids(root) == before
    assert litter(root) == []


@pytest.mark.parametrize("case", BAD_LAYOUTS)
@pytest.mark.parametrize("form", ["directory", "archive"])
def test_bad_layouts(
    tmp_path: Path, root: Path, capfd: pytest.CaptureFixture[str], case: str, form: str
) -> None:
    make, message = BAD_LAYOUTS[case]
    source = getattr(make(), form)(tmp_path / "source")
    refused(root, source, capfd, message)


def test_a_bad_image_beside_a_good_one(
    tmp_path: Path, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = imported(root, layout_of([BASE]).archive(tmp_path / "good.tar"), "good")
    layout = layout_of([BASE, TOP])
    digest = manifest_of(layout)["layers"][1]["digest"]
    bad = with_blob(layout, digest, layout.blobs[digest][:-9]).archive(tmp_path / "bad.tar")
    refused(root, bad, capfd, "cut short")
    with Store.open(str(root)) as store:
        assert store.resolve("good").id == good.id


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{tmp}/missing.tar", "no such file, and no scheme"),
        ("oci-archive:{tmp}/missing.tar", "missing.tar: No such file"),
        ("oci:{tmp}/missing", "missing: No such file"),
        ("dir:{tmp}/missing", "missing: No such file"),
        ("tar:{tmp}/missing", "missing: No such file"),
        ("oci-archve:{tmp}/a.tar", "scheme oci-archve: is not known; did you mean oci-archive:"),
        ("ftp:{tmp}/a.tar", "known are oci-archive, oci"),
        ("docker://127.0.0.1:1/debian", "127.0.0.1:1: cannot be reached"),
        ("oci:", "path is missing after oci:"),
        ("oci:{tmp}/file", "file: is not a directory"),
        ("dir:{tmp}/file", "file: is not a directory"),
        ("tar:{tmp}/folder", "is a directory; dir:"),
        ("oci-archive:{tmp}/folder", "is a directory, not an archive"),
        ("oci:{tmp}/folder", "no OCI image layout"),
        ("docker-archive:{tmp}/base.tar", "no docker-archive"),
        ("oci-archive:{tmp}/base.tar", "no OCI image layout"),
        ("oci-archive:{tmp}/file", "no tar header"),
        ("tar:{tmp}/file", "no tar header"),
        ("tar:{tmp}/cut.tar", "cut short"),
        ("tar:{tmp}/cut.tar.gz", "cut short"),
        ("tar:{tmp}/absolute.tar", "absolute; --absolute-names"),
        ("docker-archive:{tmp}/cut-archive.tar", "cut short"),
        ("oci:{tmp}/new\nline", r"new\\nline: No such file"),
    ],
)
def test_bad_sources(
    tmp_path: Path, root: Path, capfd: pytest.CaptureFixture[str], source: str, message: str
) -> None:
    (tmp_path / "file").write_bytes(b"neither tar nor anything" * 40)
    (tmp_path / "folder").mkdir()
    (tmp_path / "base.tar").write_bytes(BASE)
    (tmp_path / "cut.tar").write_bytes(BASE[: BASE.index(b"B" * 5000) + 100])
    (tmp_path / "cut.tar.gz").write_bytes(PACKED[:-60])
    (tmp_path / "absolute.tar").write_bytes(tar_of([Item("/etc/passwd")]))
    docker_archive(tmp_path / "cut-archive.tar", [BASE])
    whole = (tmp_path / "cut-archive.tar").read_bytes()
    (tmp_path / "cut-archive.tar").write_bytes(whole[:9000])
    refused(root, source.format(tmp=tmp_path), capfd, message)


@pytest.mark.parametrize("name", ["Upper", "a b", "a:b:c", "-x", "a:", "", "a/../b", "x@sha256:1"])
def test_bad_tags(tmp_path: Path, root: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    source = layout_of([BASE]).archive(tmp_path / "a.tar")
    assert run(["--root", str(root), "import", source, f"--tag={name}"]) == 1
    assert "is no name for an image" in capfd.readouterr().err
    assert image_ids(root) == []
    assert litter(root) == []


def test_docker_archives_that_lie(
    tmp_path: Path, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def archive(manifest: Any, **files: bytes) -> str:
        items = [Item("manifest.json", json.dumps(manifest).encode())]
        items += [Item(name, data) for name, data in files.items()]
        (tmp_path / "d.tar").write_bytes(tar_of(items))
        return f"docker-archive:{tmp_path / 'd.tar'}"

    config = json.dumps({"rootfs": {"diff_ids": [digest_of(BASE)]}}).encode()
    one = {"Config": "config", "Layers": ["layer"]}
    refused(root, archive({}), capfd, "not a JSON list")
    refused(root, archive([]), capfd, "which image")
    refused(root, archive([one, one]), capfd, "which image")
    refused(root, archive([{}]), capfd, "without Config")
    refused(root, archive([one]), capfd, "the config is missing")
    refused(root, archive([one], config=b"x"), capfd, "not valid JSON")
    refused(root, archive([one], config=config), capfd, "layer is missing")
    refused(root, archive([one], config=config, layer=TOP), capfd, "the config says")
    refused(root, archive([{**one, "Layers": []}], config=config), capfd, "has 0 layers")
    name = digest_of(b"other")[7:] + ".json"
    refused(
        root, archive([{**one, "Config": name}], **{name: config}), capfd, "config .* is damaged"
    )
    check = imported(root, archive([one, one], config=config, layer=BASE) + ":@1")
    assert check.layers[0].diff_id == digest_of(BASE)


def test_a_place_that_is_no_store(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").write_bytes(b"")
    for arguments in (["images"], ["rm", "a"], ["inspect", "a"], ["fsck"], ["gc"]):
        assert run(["--root", str(tmp_path), *arguments]) == 1
        assert "there is no layer store" in capfd.readouterr().err
    assert run(["--root", str(tmp_path), "import", f"dir:{tmp_path}"]) == 1
    assert "neither empty nor a layer store" in capfd.readouterr().err
    assert run(["--root", str(tmp_path / "x"), "import", f"dir:{tmp_path}"]) == 1
    assert "x: File exists" in capfd.readouterr().err
    assert os.listdir(tmp_path) == ["x"]


def test_an_index_that_is_not_one(
    tmp_path: Path, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = imported(root, layout_of([BASE]).archive(tmp_path / "a.tar"), "a")
    os.chmod(image.layer_indexes[0], 0o644)
    Path(os.fsdecode(image.layer_indexes[0])).write_bytes(b"no EROFS" * 1000)
    assert (
        run(["--root", str(root), "import", layout_of([BASE, TOP]).archive(tmp_path / "b.tar")])
        == 1
    )
    err = capfd.readouterr().err
    assert "expected the EROFS magic" in err
    assert err.count("\n") == 1
    assert run(["--root", str(root), "fsck"]) == 1
    assert "the index is damaged (images: a:latest)" in capfd.readouterr().out
    # Removed and imported again, all is well.
    assert run(["--root", str(root), "rm", "a"]) == 0
    imported(root, layout_of([BASE, TOP]).archive(tmp_path / "b.tar"))


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 2**70),
        st.text(max_size=5),
        st.sampled_from(
            [f"{OCI}.manifest.v1+json", f"{OCI}.index.v1+json", digest_of(b"{}"), "\n"]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(
            st.sampled_from(
                [
                    "manifests",
                    "digest",
                    "size",
                    "mediaType",
                    "annotations",
                    "platform",
                    "os",
                    "architecture",
                    "layers",
                    "config",
                    "rootfs",
                    "diff_ids",
                    "Config",
                    "Layers",
                    "RepoTags",
                    "org.opencontainers.image.ref.name",
                    "imageLayoutVersion",
                ]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)


@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_any_json(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever the documents of a layout say: an image, or one line."""
    layout = simple()
    document = data.draw(st.sampled_from(["layout", "index", "manifest", "config"]))
    if document == "layout":
        layout.version = json.dumps(data.draw(JSON))
    elif document == "index":
        spoil(data, layout.index)
    elif document == "manifest":
        layout = with_manifest(layout, lambda manifest: spoil(data, manifest))
    else:
        config = {"rootfs": {"type": "layers", "diff_ids": [digest_of(BASE)]}}
        spoil(data, config)
        layout = layout_of([BASE], config=config)
    shutil.rmtree(tmp_path / "layout", ignore_errors=True)
    source = layout.directory(tmp_path / "layout")
    with contextlib.suppress(StoreError), open_source(source, bytes(tmp_path)) as image:
        for layer in image.layers:
            layer.open().close()
    items = [Item("manifest.json", json.dumps(data.draw(JSON)).encode()), Item("c", b"{}")]
    (tmp_path / "d.tar").write_bytes(tar_of(items))
    with (
        contextlib.suppress(StoreError),
        open_source(f"docker-archive:{tmp_path}/d.tar", bytes(tmp_path)),
    ):
        pass


def spoil(data: st.DataObject, document: Any) -> None:
    """Replace something somewhere in a document."""
    while True:
        keys = list(document) if isinstance(document, dict) else list(range(len(document)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        inner = document[key]
        if isinstance(inner, dict | list) and inner and data.draw(st.booleans()):
            document = inner
            continue
        document[key] = data.draw(JSON)
        return
