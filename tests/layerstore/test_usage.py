"""What `du` says adds up, to itself and to what du(1) says."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from layerstore.cli import run
from layerstore.store import Store
from layerstore.usage import Size, Usage, usage
from tests.layerstore.archives import Item, layout_of, tar_of
from tests.layerstore.stores import BASE, TOP


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images, two of which share a layer; one with kept blobs; a named upper; litter."""
    place = tmp_path / "store"
    alone = tar_of([Item("alone", os.urandom(9000)), Item("inline", b"i" * 300)])
    with Store.open(str(place), create=True) as store:
        store.import_image(layout_of([BASE]).archive(tmp_path / "1.tar"), "base")
        both = layout_of([BASE, TOP], compress="gzip").archive(tmp_path / "2.tar")
        store.import_image(both, "both", keep_blobs=True)
        store.import_image(layout_of([alone]).archive(tmp_path / "3.tar"), "alone")
        upper, _ = store.named_upper("mine", store.resolve("both"))
        with open(os.path.join(upper, b"file"), "wb") as file:
            file.write(b"x" * 10_000)
        os.link(os.path.join(upper, b"file"), os.path.join(upper, b"link"))
        os.symlink("file", os.path.join(upper, b"soft"))
    (place / "objects/00").mkdir(exist_ok=True)
    (place / "objects/00" / ("0" * 62)).write_bytes(b"nobody's" * 1000)
    (place / "tmp/left").mkdir()
    (place / "tmp/left/over").write_bytes(b"of a dead import")
    (place / "quarantine").mkdir()
    (place / "quarantine" / ("1" * 64)).write_bytes(b"damaged")
    return place


def du(path: Path, *options: str) -> int:
    done = subprocess.run(["du", "-sB1", *options, path], check=True, capture_output=True)
    return int(done.stdout.split()[0])


def measured(root: Path) -> Usage:
    with Store.open(str(root)) as store:
        return usage(store)


def test_it_is_what_du_says(root: Path, tmp_path: Path) -> None:
    with Store.open(str(root)) as store:
        found = usage(store)
        assert found.total.disk == du(root)
        # du counts the apparent size of directories until coreutils 9.1, and no longer since.
        (tmp_path / "empty").mkdir()
        if du(tmp_path / "empty", "--apparent-size"):
            assert found.total.apparent == du(root, "--apparent-size")
    assert all(part.disk > 0 for name, part in found.parts.items() if name != "other")


def test_it_adds_up(root: Path) -> None:
    found = measured(root)
    kept = Size()
    for name in ("objects", "indexes", "splits", "blobs"):
        kept = kept.plus(found.parts[name])
    images = Size()
    for one in found.images:
        assert one.total == one.unique.plus(one.shared)
        images = images.plus(one.unique)
    assert kept == images.plus(found.shared).plus(found.unneeded)
    assert found.unneeded.apparent == 8000
    assert found.total.apparent == sum(part.apparent for part in found.parts.values())


def test_whose_a_file_is(root: Path) -> None:
    by_name = {one.image.name: one for one in measured(root).images}
    alone, both = by_name["alone:latest"], by_name["both:latest"]
    assert alone.shared == Size()
    assert alone.total.apparent > 9000
    # The layer that two images have, with etc/big, which the other layer has as well, and gone/file.
    assert both.shared == by_name["base:latest"].shared
    assert both.shared.apparent > 5000 + 3000
    assert both.unique.apparent > 6000  # etc/new, and the blobs


def test_reclaimable_is_what_a_removal_gives_back(root: Path) -> None:
    with Store.open(str(root)) as store:
        store.collect()  # of litter, which is not an image's
        by_name = {one.image.name: one for one in usage(store).images}
        assert by_name["both:latest"].held_by == "a named upper"
        assert by_name["both:latest"].reclaimable == Size()
        lease = store.leases.add(store.resolve("base").id)
        assert {one.held_by for one in usage(store).images} == {None, "a lease", "a named upper"}
        store.leases.remove(lease.name)
        with open(store.resolve("base").image_index):
            held = {one.image.name: one.held_by for one in usage(store).images}
            assert held["base:latest"] == "a mount"
        store.remove_upper("mine")
        for name in ("alone", "both", "base"):
            before = usage(store)
            (image,) = (one for one in before.images if one.image.name == f"{name}:latest")
            store.remove(name)
            after = usage(store)
            for part in ("objects", "indexes", "splits", "blobs"):
                before.parts[part] = before.parts[part].minus(after.parts[part])
            gone = [before.parts[part] for part in ("objects", "indexes", "splits", "blobs")]
            assert sum(size.disk for size in gone) == image.reclaimable.disk
            assert sum(size.apparent for size in gone) == image.reclaimable.apparent
        assert usage(store).ratio == 0


def test_the_ratio(root: Path, tmp_path: Path) -> None:
    with Store.open(str(root)) as store:
        before = usage(store)
        for number in range(20):
            config = {"config": {"Env": [f"N={number}"]}}
            source = layout_of([BASE, TOP], config=config).archive(tmp_path / "again.tar")
            store.import_image(source, f"again{number}")
        after = usage(store)
    assert after.parts["objects"] == before.parts["objects"]
    assert after.ratio > 5 * before.ratio


def test_the_command(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["--root", str(root), "du", "--json"]) == 0
    data = json.loads(capfd.readouterr().out)
    found = measured(root)
    assert data["parts"]["objects"] == found.parts["objects"]._asdict()
    assert {image["tags"][0] for image in data["images"]} == {
        "base:latest",
        "both:latest",
        "alone:latest",
    }
    for options in ([], ["--apparent-size"]):
        assert run(["--root", str(root), "du", *options]) == 0
        out = capfd.readouterr().out
        assert "a named upper holds it" in out
        assert " to 1\n" in out
