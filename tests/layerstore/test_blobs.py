"""Layers' blobs that are kept as they came: they live and go with the images that list them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerstore import session
from layerstore.check import check
from layerstore.cli import run
from layerstore.errors import StoreError
from layerstore.store import Image, Store
from tests.layerstore.archives import Layout, docker_archive, layout_of
from tests.layerstore.stores import BASE, TOP, image_ids, imported, litter, problems


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def keep(root: Path, source: str, tag: str | None = None) -> Image:
    with Store.open(str(root), create=True) as store:
        image = store.import_image(source, tag, keep_blobs=True)
    assert problems(root) == []
    assert litter(root) == []
    return image


def blobs(root: Path) -> dict[str, bytes]:
    return {f"sha256:{path.name}": path.read_bytes() for path in (root / "blobs").iterdir()}


def packed(layout: Layout) -> dict[str, bytes]:
    """The layers' blobs of a layout."""
    (descriptor,) = layout.index["manifests"]
    layers = json.loads(layout.blobs[descriptor["digest"]])["layers"]
    return {layer["digest"]: layout.blobs[layer["digest"]] for layer in layers}


@pytest.mark.parametrize("compress", ["gzip", "zstd"])
def test_kept_and_removed(root: Path, tmp_path: Path, compress: str) -> None:
    layout = layout_of([BASE, TOP, BASE], compress=compress)
    source = layout.archive(tmp_path / "a.tar")
    assert run(["--root", str(root), "import", "--keep-blobs", "-t", "x", source]) == 0
    assert blobs(root) == packed(layout)
    assert problems(root) == []
    with Store.open(str(root)) as store:
        assert store.resolve("x").manifest == next(
            layout.blobs[m["digest"]] for m in layout.index["manifests"]
        )
        done = store.remove("x")
        assert done is not None
        assert done.bytes > sum(map(len, packed(layout).values()))
    assert blobs(root) == {}


def test_not_kept_unless_asked(root: Path, tmp_path: Path) -> None:
    imported(root, layout_of([BASE]).archive(tmp_path / "a.tar"))
    assert blobs(root) == {}


def test_nothing_to_keep(root: Path, tmp_path: Path) -> None:
    """What is plain is rebuilt as it was, and without a manifest no digest depends on a blob."""
    keep(root, layout_of([BASE], compress="").archive(tmp_path / "a.tar"))
    keep(root, docker_archive(tmp_path / "b.tar", [TOP]))
    assert blobs(root) == {}


def test_a_layer_that_is_there_already(root: Path, tmp_path: Path) -> None:
    layout = layout_of([BASE, TOP])
    source = layout.archive(tmp_path / "a.tar")
    imported(root, source, "x")
    keep(root, source)
    assert blobs(root) == packed(layout)


def test_another_form_of_the_same_image_takes_its_place(root: Path, tmp_path: Path) -> None:
    docker = docker_archive(tmp_path / "d.tar", [BASE])
    gzip, zstd = layout_of([BASE]), layout_of([BASE], compress="zstd")
    ids = {imported(root, docker).id}
    ids.add(imported(root, gzip.archive(tmp_path / "g.tar")).id)
    with Store.open(str(root)) as store:
        assert store.resolve(min(ids)).manifest in gzip.blobs.values()
    ids.add(keep(root, gzip.archive(tmp_path / "g.tar")).id)
    with Store.open(str(root)) as store:
        store.import_image(zstd.archive(tmp_path / "z.tar"), "x", keep_blobs=True)
        assert store.resolve("x").manifest in zstd.blobs.values()
        store.collect()
    assert len(ids) == 1
    assert blobs(root) == packed(zstd)
    # Whoever does not ask for blobs does not take them away.
    assert imported(root, gzip.archive(tmp_path / "g.tar")).manifest in zstd.blobs.values()


def test_images_share_blobs(root: Path, tmp_path: Path) -> None:
    one, both = layout_of([BASE]), layout_of([BASE, TOP])
    keep(root, one.archive(tmp_path / "1.tar"), "one")
    keep(root, both.archive(tmp_path / "2.tar"), "both")
    with Store.open(str(root)) as store:
        store.remove("one")
        assert blobs(root) == packed(both)
        store.remove("both")
    assert blobs(root) == {}
    assert litter(root) == []


def test_collection_leaves_them(root: Path, tmp_path: Path) -> None:
    layout = layout_of([BASE])
    keep(root, layout.archive(tmp_path / "a.tar"))
    with Store.open(str(root)) as store:
        assert store.collect() == (0, 0, 0)
    assert blobs(root) == packed(layout)


def test_a_blob_of_another_layer_is_not_kept(root: Path, tmp_path: Path) -> None:
    """The manifest names a blob that is no form of a layer that is there already."""
    imported(root, layout_of([BASE]).archive(tmp_path / "a.tar"), "x")
    layout = layout_of([BASE])
    other = layout_of([TOP])
    (descriptor,) = layout.index["manifests"]
    manifest = json.loads(layout.blobs[descriptor["digest"]])
    manifest["layers"] = json.loads(other.blobs[other.index["manifests"][0]["digest"]])["layers"]
    layout.blobs.update(other.blobs)
    layout.index["manifests"] = [layout.add_json(manifest, descriptor["mediaType"])]
    with Store.open(str(root)) as store:
        with pytest.raises(StoreError, match="its uncompressed digest is"):
            store.import_image(layout.archive(tmp_path / "b.tar"), keep_blobs=True)
        assert blobs(root) == {}
        assert litter(root) == []


def test_damage_is_found(root: Path, tmp_path: Path) -> None:
    layout = layout_of([BASE, TOP])
    keep(root, layout.archive(tmp_path / "a.tar"), "x")
    one, two = sorted((root / "blobs").iterdir())
    one.unlink()
    two.chmod(0o644)
    two.write_bytes(two.read_bytes()[::-1])
    with Store.open(str(root)) as store:
        quick = list(check(store))
        assert [(problem.what, problem.images) for problem in quick] == [
            (f"{one}: the kept blob is missing", ["x:latest"])
        ]
        thorough = [problem.what for problem in check(store, content=True)]
        assert f"{two}: the kept blob is damaged" in thorough
        two.write_bytes(b"")
        assert len(list(check(store))) == 2
        store.remove("x")
    assert litter(root) == []


def test_beside_another_import(root: Path, tmp_path: Path) -> None:
    layout = layout_of([BASE])
    keep(root, layout.archive(tmp_path / "a.tar"), "x")
    with Store.open(str(root)) as store:
        with session.Session(bytes(root)):
            assert store.remove("x") is None
            assert blobs(root) == packed(layout)
        store.collect()
    assert blobs(root) == {}
    assert image_ids(root) == []
