"""Damage: found, taken out of the way, named with the images it hurts, and put right."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path

import pytest

from layerstore import check, collect, session
from layerstore.cli import run
from layerstore.errors import StoreError
from layerstore.index.reader import Index
from layerstore.repair import repair
from layerstore.scrub import scrub
from layerstore.store import Image, Store
from tests.layerstore.archives import Item, layout_of, tar_of
from tests.layerstore.stores import BASE, TOP, litter, problems
from tests.layerstore.test_crash import DIED, at_step, in_child

BIG = b"B" * 5000  # etc/big of BASE, etc/copy of TOP


class World:
    """A store with two images that share a layer, and where they came from."""

    def __init__(self, place: Path) -> None:
        self.root = place / "store"
        self.source = layout_of([BASE, TOP]).archive(place / "both.tar")
        base = layout_of([BASE]).archive(place / "base.tar")
        with Store.open(str(self.root), create=True) as store:
            self.base = store.import_image(base, "base")
            self.both = store.import_image(self.source, "both")
            self.objects = list(store.objects())

    def open(self) -> Store:
        return Store.open(str(self.root))

    def path(self, digest: str) -> Path:
        return self.root / "objects" / digest[7:9] / digest[9:]

    def damage(self, path: str | bytes | Path, at: int = 100) -> None:
        """Change a byte, as a disk would."""
        path = os.fsdecode(path)
        os.chmod(path, 0o644)
        with open(path, "r+b") as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))

    def object_of(self, image: Image, name: bytes) -> str:
        with Index(image.image_index) as index:
            nid = index.root_nid
            for part in name.split(b"/"):
                found = index.lookup(nid, part)
                assert found is not None
                nid = found
            content = index.content(nid)
            digest: str = content.digest  # type: ignore[union-attr]
            return digest


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize("fast", [False, True])
def test_a_sound_store(world: World, fast: bool) -> None:
    with world.open() as store:
        told: list[int] = []
        found = list(scrub(store, fast=fast, progress=lambda _, done, __: told.append(done)))
        assert found == []
        assert told[-1] == sum(os.path.getsize(world.path(digest)) for digest in world.objects)


def test_every_object_has_its_checksum_after_an_import(world: World) -> None:
    with world.open() as store:
        assert set(store.refs().checksums()) == {bytes.fromhex(d[7:]) for d in world.objects}
        store.remove("both")
        store.remove("base")
        assert store.refs().checksums() == {}


@pytest.mark.parametrize("fast", [False, True])
def test_a_damaged_object_is_taken_away_and_put_back(world: World, fast: bool) -> None:
    big = world.object_of(world.base, b"etc/big")
    new = world.object_of(world.both, b"etc/new")
    world.damage(world.path(big))
    world.damage(world.path(new))
    with world.open() as store:
        assert list(check.check(store)) == []  # structure and references are sound
        found = {p.digest: p for p in scrub(store, fast=fast)}
        assert found.keys() == {big, new}
        assert sorted(found[big].images) == ["base:latest", "both:latest"]
        assert found[new].images == ["both:latest"]
        assert "is damaged" in found[big].what
        # Nobody is given the wrong bytes any more.
        assert not store.objects().has(big)
        assert set(store.objects().quarantined()) == {big, new}
        store.collect()
        assert set(store.objects().quarantined()) == {big, new}
        done = repair(store, world.source)
        assert (done.objects, done.indexes, done.left) == (2, 0, [])
        assert world.path(big).read_bytes() == BIG
        store.collect()
        assert store.objects().quarantined() == []
        assert list(scrub(store)) == []
    assert (problems(world.root), litter(world.root)) == ([], [])


def test_objects_cut_short_or_gone_need_no_scrub(world: World) -> None:
    big = world.object_of(world.base, b"etc/big")
    new = world.object_of(world.both, b"etc/new")
    world.path(big).chmod(0o644)
    os.truncate(world.path(big), 4000)
    world.path(new).unlink()
    with world.open() as store:
        found = {p.digest: p.what for p in check.check(store)}
        assert found.keys() == {big, new}
        assert "has 4000 bytes, not 5000" in found[big]
        assert "is missing" in found[new]
        assert repair(store, world.source).objects == 2
    assert (problems(world.root), litter(world.root)) == ([], [])


def test_a_wrong_checksum_is_no_damage(world: World) -> None:
    with world.open() as store:
        right = store.refs().checksums()
        with store.refs().transaction():
            store.refs().set_checksums([(bytes.fromhex(world.objects[0][7:]), bytes(8))])
            store.refs().remove_checksums([bytes.fromhex(world.objects[1][7:])])
        assert list(scrub(store, fast=True)) == []
        assert store.refs().checksums() == right


def test_indexes_are_made_from_what_the_store_has(world: World) -> None:
    for path in (world.both.image_index, world.both.layer_indexes[0]):
        world.damage(path, 1500)
    os.unlink(world.base.image_index)
    before = {
        path.name: path.read_bytes()
        for path in (world.root / "objects").rglob("??*")
        if path.is_file()
    }
    with world.open() as store:
        with pytest.raises(StoreError, match="nothing is deleted before"):
            store.collect()
        assert len(list(check.check(store))) == 3
        # Damage of one image is no reason not to import another.
        other = tar_of([Item("other", b"o" * 4000)])
        session.want_collection(store.root)
        store.import_image(layout_of([other]).archive(world.root.parent / "other.tar"), "other")
        done = repair(store)
        assert (done.objects, done.indexes, done.left) == (0, 3, [])
        store.remove("other")
        store.collect()
    after = {
        path.name: path.read_bytes()
        for path in (world.root / "objects").rglob("??*")
        if path.is_file()
    }
    assert before == after
    assert (problems(world.root), litter(world.root)) == ([], [])


def test_a_layer_of_which_nothing_is_left(world: World) -> None:
    with world.open() as store:
        diff_id = world.both.layers[1].diff_id
        os.unlink(world.both.layer_indexes[1])
        os.unlink(collect.split_path(store.root, diff_id))
        os.unlink(world.both.image_index)
        world.path(world.object_of(world.base, b"etc/big")).unlink()
        world.path(
            next(
                d
                for d in world.objects
                if world.path(d).exists() and world.path(d).read_bytes() == b"N" * 6000
            )
        ).unlink()
        assert repair(store).indexes == 0
        done = repair(store, world.source)
        assert (done.objects, done.indexes, done.splits) == (2, 2, 1)
    assert problems(world.root) == []
    with world.open() as store:
        store.collect()
    assert litter(world.root) == []


def test_a_kept_blob_is_a_source_and_has_one(world: World, tmp_path: Path) -> None:
    with world.open() as store:
        source = layout_of([BASE, TOP], compress="gzip").archive(tmp_path / "gzip.tar")
        image = store.import_image(source, "kept", keep_blobs=True)
        blobs = [os.fsdecode(entry) for entry in (world.root / "blobs").iterdir()]
        assert len(blobs) == 2
        # What is lost is in a blob.
        world.path(world.object_of(image, b"etc/big")).unlink()
        os.unlink(collect.split_path(store.root, image.layers[1].diff_id))
        done = repair(store)
        assert (done.objects, done.splits) == (1, 1)
        # And a blob is in the source.
        world.damage(blobs[0])
        os.unlink(blobs[1])
        assert sorted(p.what.rpartition(" ")[2] for p in scrub(store)) == ["damaged", "missing"]
        assert repair(store, source).blobs == 2
        assert list(scrub(store)) == []
    assert problems(world.root) == []


def test_a_split_is_taken_from_the_source(world: World) -> None:
    with world.open() as store:
        path = collect.split_path(store.root, world.base.layers[0].diff_id)
        world.damage(path, 60)
        assert len(list(check.check(store))) == 1
        assert repair(store, world.source).splits == 1
        with store.layer_tar(world.base.layers[0].diff_id) as tar:
            assert tar.read() == BASE
    assert problems(world.root) == []


def test_an_index_that_is_in_use_stays(world: World) -> None:
    world.damage(world.both.image_index, 1500)
    with open(world.both.image_index, "rb"), world.open() as store:
        done = repair(store)
        assert done.indexes == 0
        assert "is in use: unmount its images" in done.left[0]
    with world.open() as store:
        assert repair(store).indexes == 1


def test_a_source_that_has_not_what_is_wanted(world: World, tmp_path: Path) -> None:
    big = world.object_of(world.base, b"etc/big")
    world.path(big).unlink()
    other = layout_of([tar_of([Item("other", b"o" * 4000)])]).archive(tmp_path / "other.tar")
    with world.open() as store:
        assert repair(store, other).objects == 0
        with pytest.raises(StoreError):
            repair(store, str(tmp_path / "nothing.tar"))
        assert [p.digest for p in check.check(store)] == [big]
    # Any tree with the content will do.
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "somewhere").write_bytes(BIG)
    with world.open() as store:
        assert repair(store, f"dir:{tree}").objects == 1
    assert (problems(world.root), litter(world.root)) == ([], [])


def test_the_commands(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    def layerstore(*words: str) -> tuple[int, str, str]:
        status = run(["--root", str(world.root), *words])
        return status, *capfd.readouterr()

    assert layerstore("scrub", "--fast")[:2] == (0, "nothing wrong\n")
    big = world.object_of(world.base, b"etc/big")
    world.damage(world.path(big))
    assert layerstore("fsck")[0] == 0
    status, out, _ = layerstore("scrub")
    assert status == 1
    assert "base:latest" in out
    assert "both:latest" in out
    status, out, _ = layerstore("fsck", "--json")
    assert (status, json.loads(out)[0]["digest"]) == (1, big)
    status, out, _ = layerstore("scrub", "--repair-from", world.source)
    assert status == 0
    assert out.endswith("put back 1 objects, 0 indexes, 0 splits, 0 blobs\nnothing wrong\n")
    assert layerstore("fsck", "--content", "--repair")[0] == 0


@pytest.mark.slow
def test_killed_at_every_step(world: World, tmp_path: Path) -> None:
    """Of a scrub and repair: afterwards nothing wrong is served, and a second try puts all right."""
    for digest in world.objects[:2]:
        world.damage(world.path(digest))
    world.damage(world.both.image_index, 1500)
    world.damage(world.base.layer_indexes[0], 1500)
    number = 0
    while True:
        number += 1
        here = copy.copy(world)
        here.root = tmp_path / f"store-{number}"
        shutil.copytree(world.root, here.root)

        def work(here: World = here, number: int = number) -> None:
            with here.open() as store:
                at_step(number, here.root, lambda: os._exit(DIED))
                list(scrub(store))
                repair(store, here.source)

        status = in_child(work)
        assert status in (0, DIED)
        with here.open() as store:
            list(scrub(store))
            for digest in store.objects():
                store.objects().verify(digest)
            repair(store, here.source)
            store.collect()
            assert store.objects().quarantined() == []
        assert (problems(here.root), litter(here.root)) == ([], [])
        if status == 0:
            break
    assert number > 30
