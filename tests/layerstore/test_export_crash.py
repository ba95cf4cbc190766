"""An export that dies or fails at any step leaves what was there, and perhaps the whole image."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from layerstore.cli import run
from layerstore.errors import StoreError
from layerstore.store import Store
from tests.layerstore.archives import Item, layout_of, tar_of
from tests.layerstore.stores import BASE, TOP, imported, litter, problems
from tests.layerstore.test_crash import DIED, at_step, in_child
from tests.layerstore.test_index import mounted

FORMS = ("oci", "oci-archive", "docker-archive", "tar", "dir", "added")
STEPS_MIN = {"oci": 12, "added": 12, "dir": 8, "oci-archive": 2, "docker-archive": 2, "tar": 2}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "store"
    imported(root, layout_of([BASE, TOP]).archive(tmp_path / "source.tar"), "x")
    return root


def prepared(place: Path, form: str) -> str:
    """An empty place, or one with a layout that has an image; returns the destination there."""
    place.mkdir()
    if form != "added":
        return f"{form}:{place}/out"
    layout_of([BASE], name="theirs").directory(place / "out")
    return f"oci:{place}/out:ours"


def looks_right(place: Path, form: str, store: Path) -> bool:
    """Whether the image is there; it is whole, or there is nothing of it."""
    out = place / "out"
    if form == "added":
        assert imported(store, f"oci:{out}:theirs")
        manifests = json.loads((out / "index.json").read_bytes())["manifests"]
        if len(manifests) == 1:
            return False
        assert len(imported(store, f"oci:{out}:ours").layers) == 2
        return True
    if not out.exists():
        return False
    assert imported(store, f"{form}:{out}").layers
    return True


@pytest.mark.parametrize("form", FORMS)
def test_killed_at_every_step(form: str, root: Path, tmp_path: Path) -> None:
    number = outcomes = 0
    while True:
        number += 1
        place = tmp_path / f"place-{number}"
        destination = prepared(place, form)

        def work(number: int = number, place: Path = place, destination: str = destination) -> None:
            with Store.open(str(root)) as store:
                at_step(number, place, lambda: os._exit(DIED))
                store.export_image("x", destination)

        status = in_child(work)
        assert status in (0, DIED)
        there = looks_right(place, form, tmp_path / "second")
        outcomes |= 1 << there
        if status == 0:
            assert there
            break
        if not there:
            # The next export succeeds, and tidies up.
            with Store.open(str(root)) as store:
                store.export_image("x", destination)
            assert looks_right(place, form, tmp_path / "second")
            assert not list(place.rglob(".layerstore-*"))
    assert number > STEPS_MIN[form]
    assert outcomes & 1
    assert problems(root) == []
    assert litter(root) == []


@pytest.mark.parametrize("form", FORMS)
def test_failing_at_every_step(form: str, root: Path, tmp_path: Path) -> None:
    number = 0
    while True:
        number += 1
        place = tmp_path / f"place-{number}"
        destination = prepared(place, form)

        def work(number: int = number, place: Path = place, destination: str = destination) -> None:
            failed = False

            def fail() -> None:
                nonlocal failed
                failed = True
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            with Store.open(str(root)) as store:
                at_step(number, place, fail)
                store.export_image("x", destination)
            if failed:  # and did not matter
                raise StoreError

        status = in_child(work)
        assert status in (0, 1)
        there = looks_right(place, form, tmp_path / "second")
        assert there or status == 1
        if not there:
            assert form == "added" or list(place.iterdir()) == []
        if list(place.rglob(".layerstore-*")):
            # It could not be removed when all was done: the next export does that.
            assert there
            with Store.open(str(root)) as store:
                store.export_image("x", destination)
            assert not list(place.rglob(".layerstore-*"))
        if status == 0:
            break
    assert number > STEPS_MIN[form]


@pytest.mark.skipif(os.geteuid() != 0, reason="a small filesystem to fill needs root to mount")
@pytest.mark.parametrize("scheme", ["oci", "oci-archive", "docker-archive", "tar", "dir"])
def test_a_full_disk(scheme: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "store"
    big = tar_of([Item(f"f{number}", os.urandom(1 << 20)) for number in range(4)])
    imported(root, layout_of([BASE, big], compress="").archive(tmp_path / "big.tar"), "x")
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=2m", "tmpfs") as small:
        assert run(["--root", str(root), "export", "x", f"{scheme}:{small}/out"]) == 1
        said = capfd.readouterr().err
        assert "no space left: nothing was exported" in said
        assert said.count("\n") == 1
        assert list(small.iterdir()) == []
        assert os.statvfs(small).f_bfree == os.statvfs(small).f_blocks


def test_a_kept_blob_is_placed_whole_or_not(tmp_path: Path) -> None:
    """The crash points of an import that keeps blobs; see test_crash for the others."""
    layout = layout_of([BASE, TOP])
    source = layout.archive(tmp_path / "source.tar")
    number = 0
    while True:
        number += 1
        root = tmp_path / f"store-{number}"

        def work(root: Path = root, number: int = number) -> None:
            with Store.open(str(root), create=True) as store:
                at_step(number, root, lambda: os._exit(DIED))
                store.import_image(source, "x", keep_blobs=True)

        status = in_child(work)
        if status != 0:
            with Store.open(str(root), create=True) as store:
                store.import_image(source, "x", keep_blobs=True)
        assert problems(root) == []
        assert litter(root) == []
        for path in (root / "blobs").iterdir():
            assert path.read_bytes() == layout.blobs[f"sha256:{path.name}"]
        assert len(list((root / "blobs").iterdir())) == 2
        if status == 0:
            break
        assert status == DIED
    assert number > 30
