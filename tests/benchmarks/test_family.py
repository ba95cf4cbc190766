"""The figures of real images, worked out on small ones: floor, parts of a store, trees, goals."""

from __future__ import annotations

import hashlib
import os
import tarfile
from pathlib import Path

import msgspec
import pytest

from benchmarks import oci_layout, subjects
from benchmarks.errors import CannotMeasure
from benchmarks.family import archives, disk, floor, goals, memory, pulls, trees, unpacked
from benchmarks.family.floor import Floor
from layerstore.store import Store
from tests.benchmarks.documents import document, row
from tests.layerstore.registry.docker import needs_registry

FIRST = {"a/one": b"1" * 5000, "a/two": b"2" * 100, "b/three": b"3"}
SECOND = {"a/again": b"1" * 5000, "a/.wh.two": b"", "c/four": b"4" * 4096}


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """Two images that share their lower layer."""
    oci_layout.write(tmp_path / "layout", {"small": [FIRST], "large": [FIRST, SECOND]})
    return tmp_path / "layout"


def test_the_floor_has_every_content_once(layout: Path) -> None:
    found = floor.measure(layout, ["small", "large"])
    assert (found.images, found.layers) == (2, 3)  # the times in the lower layer differ
    contents = [b"1" * 5000, b"2" * 100, b"3", b"4" * 4096]
    assert found.contents == {hashlib.sha256(each).digest(): len(each) for each in contents}
    assert found.bytes == 5000 + 100 + 1 + 4096
    assert found.rounded_bytes == 8192 + 3 * 4096
    assert found.files == 3 + 3 + 2
    assert found.file_bytes == 2 * 5101 + 5000 + 4096
    assert found.tars == found.unique_tars
    assert found.tars % 512 == 0
    assert floor.measure(layout, ["small", "small"]).layers == 1


def test_archives_of_one_image_become_one_layout(tmp_path: Path) -> None:
    made = {}
    for number, name in enumerate(("one", "two")):
        oci_layout.write(tmp_path / name, {"latest": [FIRST] + [SECOND] * number})
        made[name] = tmp_path / f"{name}.tar"
        with tarfile.open(made[name], "w") as archive:
            archive.add(tmp_path / name, ".")
    archives.lay_out(made, tmp_path / "both")
    for name in made:
        assert archives.identity(tmp_path / "both", name) == archives.identity(
            tmp_path / name, "latest"
        )
    with pytest.raises(CannotMeasure, match="no image three"):
        archives.manifest_digest(tmp_path / "both", "three")


def test_an_image_that_was_never_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(CannotMeasure, match="tools/images family-gcc"):
        archives.find("family-gcc")
    for digits in ("0" * 12, "f" * 12):
        path = tmp_path / f"overlayfs-py/images/family-gcc-{digits}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (1, int(digits == "0" * 12)))
    assert archives.find("family-gcc").name == "family-gcc-000000000000.tar"


def test_the_parts_of_a_store_are_all_of_it(layout: Path, tmp_path: Path) -> None:
    with_everything = Store.open(str(tmp_path / "store"), create=True)
    with_everything.import_image(f"oci:{layout}:large")
    with_everything.close()
    found = disk.usage(tmp_path / "store")
    assert set(found) == {*disk.PARTS, "directories"}
    assert found["objects"].bytes == 5000 + 4096
    assert [found[part].files for part in disk.PARTS[:4]] == [2, 2, 1, 2]
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert sum(each.bytes for each in found.values()) == sum(p.stat().st_size for p in files)
    least = floor.measure(layout, ["large"])
    findings = goals.bytes_on_disk(least, found, 1 << 20)
    assert findings[0].met
    assert not findings[1].met  # an image of four files describes more than it has
    assert any("whole-file floor" in line for line in goals.disk_lines(least, found))


def test_objects_beyond_the_floor_are_a_miss() -> None:
    used = {part: disk.Usage(1, 1000, 4096) for part in (*disk.PARTS, "directories")}
    assert goals.bytes_on_disk(Floor(contents={b"": 999}), used, 1)[0].met is False


def test_trees_differ_by_whatever_an_image_can_say(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "d").mkdir(parents=True)
        (tmp_path / name / "d/file").write_text("content")
        os.link(tmp_path / name / "d/file", tmp_path / name / "link")
        os.symlink("file", tmp_path / name / "d/soft")
        for path in ("d/file", "d/soft", "d", ""):
            os.utime(tmp_path / name / path, ns=(0, 5), follow_symlinks=False)
    one, two = tmp_path / "one", tmp_path / "two"
    assert list(trees.differences(one, two)) == []
    (two / "d/file").write_text("CONTENT")
    os.utime(two / "d/file", ns=(0, 5))
    assert [line.split(":")[0] for line in trees.differences(one, two)] == ["/link"]
    (two / "link").unlink()
    os.utime(two, ns=(0, 5))
    assert [line.split(":")[0] for line in trees.differences(one, two)] == ["/d/file", "/link"]
    (two / "d/soft").unlink()
    os.symlink("elsewhere", two / "d/soft")
    assert "/d/soft" in " ".join(trees.differences(one, two))


@pytest.mark.skipif(os.geteuid() != 0, reason="owners and whiteouts need root")
def test_unpacked_layers_have_the_marks_of_the_kernel(layout: Path, tmp_path: Path) -> None:
    place = tmp_path / "layers"
    place.mkdir()
    assert unpacked.unpack(layout, "large", place) == ["1", "0"]
    assert (place / "0/a/two").read_bytes() == b"2" * 100
    assert (place / "1/a/two").is_char_device()
    assert (place / "1/a/two").stat().st_rdev == 0
    assert not (place / "1/a/.wh.two").exists()


def test_goals_are_judged_by_ratios_within_a_round() -> None:
    rows = {
        "family-import.time/image=django@disk": {"ours": [500, 600], "skopeo": [1000, 1100]},
        "family-import.peak/image=django@disk": {"ours": [50 * 1024, 300 * 1024]},
        "store-mount/layers=1@disk": {"ours": [10, 20]},
        "store-mount/layers=400@disk": {"ours": [10, 20]},
        "store-mount/layers=30@disk": {"ours": [20, 41]},
        "family-container.find@disk": {"ours": [300, 200], "kernel": [100, 100]},
        "family-container.find-again@disk": {"ours": [100, 100]},
    }
    samples = [
        (msgspec.structs.replace(row("any"), id=name), subject, values)
        for name, subjects in rows.items()
        for subject, values in subjects.items()
    ]
    found = {finding.what: finding for finding in goals.timings(document(*samples))}
    met = {what: finding.met for what, finding in found.items()}
    assert met == {
        "import django, ours / skopeo copy into containers-storage": True,
        "import django, peak memory": False,
        "mount an image of 30 layers / of 1 layer": False,
        "mount an image of 400 layers / of 1 layer": True,
        "find, first time, ours / kernel overlayfs on unpacked layers": False,
        "find in a second container of the image / in the first, ours": True,
    }
    assert found["import django, peak memory"].measured == "300 MiB"
    assert list(goals.timings(document((row("another"), "ours", [1.0])))) == []


def test_the_image_of_many_entries(tmp_path: Path) -> None:
    for layers in (1, 3):
        memory.write(tmp_path / str(layers), 500, layers)
        with Store.open(str(tmp_path / "store"), create=True) as store:
            image = store.import_image(f"oci:{tmp_path / str(layers)}")
            assert len(image.layers) == layers
            assert sum(layer.entries for layer in image.layers) == 500


@needs_registry
def test_what_a_pull_fetches(tmp_path: Path) -> None:
    """Most of the second image's layer is in the first."""
    before = {f"a/{number}": os.urandom(9000) for number in range(40)}
    contents = {"before": [before], "after": [before | {"a/1": os.urandom(9000)}]}
    oci_layout.write(tmp_path / "layout", contents)
    ours = subjects.locate(subjects.parse(goals.OURS))
    (tmp_path / "work").mkdir()
    (found,) = pulls.pulls(ours, tmp_path / "layout", tmp_path / "work", [("before", "after", 0.2)])
    assert found.met, found.measured
