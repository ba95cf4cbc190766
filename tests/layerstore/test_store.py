"""The store: finding images, removing them, named uppers, collection, fsck, objects, the database."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import pytest

from layerstore import names, place, schema, session
from layerstore.digests import chain_id
from layerstore.errors import (
    ImageInUse,
    ImageUnknown,
    IndexCorrupt,
    ObjectCorrupt,
    ObjectMissing,
    StoreError,
    show,
)
from layerstore.index.reader import Index
from layerstore.objects import Objects, Staging
from layerstore.store import Store
from tests.layerstore.archives import Item, digest_of, folder, layout_of, tar_of
from tests.layerstore.stores import BASE, TOP, litter, problems


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    """Two images that share a layer, and one apart."""
    return {
        "base": layout_of([BASE]).archive(tmp_path / "base.tar"),
        "both": layout_of([BASE, TOP]).archive(tmp_path / "both.tar"),
        "other": layout_of([tar_of([Item("o", b"o" * 2000)])]).archive(tmp_path / "other.tar"),
    }


def test_resolve(root: Path, sources: dict[str, str]) -> None:
    with Store.open(str(root), create=True) as here:
        base = here.import_image(sources["base"], "docker.io/library/debian:12")
        both = here.import_image(sources["both"], "localhost/app")
        for name in ("debian:12", "library/debian:12", "docker.io/library/debian:12", base.id):
            assert here.resolve(name).id == base.id
        for name in ("app", "localhost/app:latest", both.id[7:], both.id[7:19]):
            assert here.resolve(name).id == both.id
        for name in (
            "debian",
            "debian:13",
            "app:1",
            "ffffffffffff" * 5,
            "",
            "APP",
            "a b",
            "bian:12",
        ):
            with pytest.raises(ImageUnknown, match="no such image"):
                here.resolve(name)
        here.tag("app", "example.org/app")
        assert here.resolve("app").id == both.id  # the same image by either name
        here.tag("debian:12", "other.org/app")
        with pytest.raises(ImageUnknown, match="which one"):
            here.resolve("app")
        assert [image.id for image in here.images()] == [both.id, base.id]


def test_an_id_that_is_short_for_several(root: Path, tmp_path: Path) -> None:
    with Store.open(str(root), create=True) as here:
        digits: dict[str, int] = {}
        number = 0
        while not any(count > 1 for count in digits.values()):
            path = tmp_path / "x.tar"
            path.write_bytes(tar_of([Item("f", b"%d" % number)]))
            first = here.import_image(f"tar:{path}").id[7]
            digits[first] = digits.get(first, 0) + 1
            number += 1
        twice = next(digit for digit, count in digits.items() if count > 1)
        with pytest.raises(ImageUnknown, match="give more digits"):
            here.resolve(twice)


def test_remove(root: Path, sources: dict[str, str]) -> None:
    with Store.open(str(root), create=True) as here:
        here.import_image(sources["base"], "base")
        both = here.import_image(sources["both"], "both")
        here.tag("both", "again")
        assert here.remove("again") == (0, 0, 0)
        with pytest.raises(ImageUnknown):
            here.resolve("again")
        here.tag("both", "again")
        with pytest.raises(ImageInUse, match="again:latest, both:latest"):
            here.remove(both.id)
        done = here.remove(both.id, force=True)
        assert done is not None
        assert done.objects == 1  # etc/new; the other content is base's
        assert done.indexes == 2
        assert problems(root) == []
        assert litter(root) == []
        here.remove("base")
        assert here.images() == []
        assert not list((root / "layers").iterdir())
        assert not [path for path in (root / "objects").rglob("*") if path.is_file()]


def test_the_same_layers_under_another_config(root: Path, tmp_path: Path) -> None:
    with Store.open(str(root), create=True) as here:
        one = here.import_image(layout_of([BASE]).archive(tmp_path / "1.tar"), "one")
        config = {"config": {"Env": ["A=1"]}}
        two = here.import_image(layout_of([BASE], config=config).archive(tmp_path / "2.tar"), "two")
        assert one.id != two.id
        assert one.image_index == two.image_index
        with Index(one.image_index):
            here.remove("one")  # two still needs the index that is open
        assert problems(root) == []
        assert here.resolve("two").config["config"] == {"Env": ["A=1"]}


def test_what_is_open_is_not_removed(root: Path, sources: dict[str, str]) -> None:
    with Store.open(str(root), create=True) as here:
        image = here.import_image(sources["both"], "both")
        with Index(image.image_index):
            with pytest.raises(ImageInUse, match="mounted or being read"):
                here.remove("both")
            assert here.resolve("both").id == image.id
        # Open through one of its layers only: the row goes, the files stay until it is closed.
        with Index(image.layer_indexes[0]):
            here.remove("both")
            assert os.path.exists(image.layer_indexes[0])
            kept = [path for path in (root / "objects").rglob("*") if path.is_file()]
            assert len(kept) == 2
        done = here.collect()
        assert done is not None
        assert done.objects == 2
        assert litter(root) == []


def test_an_index_that_is_being_removed_is_not_opened(root: Path, sources: dict[str, str]) -> None:
    with Store.open(str(root), create=True) as here:
        image = here.import_image(sources["base"], "base")
        held = session.try_lock(image.image_index)
        assert held is not None
        with pytest.raises(StoreError, match="being removed"):
            Index(image.image_index)
        os.close(held)
        Index(image.image_index).close()


def test_collection_waits_for_imports(root: Path, sources: dict[str, str]) -> None:
    with Store.open(str(root), create=True) as here:
        here.import_image(sources["base"], "base")
        with session.Session(os.fsencode(root)):
            assert here.remove("base") is None
            assert here.images() == []
            assert list((root / "layers").iterdir())
        here.import_image(sources["other"], "other")  # the next import does it
        assert litter(root) == []
        assert len(list((root / "layers").glob("*.erofs"))) == 1


def test_a_removal_during_an_import_of_the_same_layers(
    root: Path, sources: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from layerstore import importer

    with Store.open(str(root), create=True) as here:
        here.import_image(sources["base"], "base")
        plain = importer.Importer._place

        def place(self: importer.Importer) -> None:
            with Store.open(str(root)) as other:
                assert other.remove("base") is None
            plain(self)

        monkeypatch.setattr(importer.Importer, "_place", place)
        here.import_image(sources["both"], "both")
        assert problems(root) == []
        assert here.collect() is not None
        assert problems(root) == []
        assert litter(root) == []


# --- named uppers


def test_named_uppers(root: Path, tmp_path: Path, sources: dict[str, str]) -> None:
    tar = tar_of([folder(".", 0o1711, mtime=12.5, xattrs={"user.a": "b"}), Item("f", b"x")])
    (tmp_path / "r.tar").write_bytes(tar)
    with Store.open(str(root), create=True) as here:
        image = here.import_image(f"tar:{tmp_path / 'r.tar'}", "r")
        other = here.import_image(sources["other"], "other")
        upper, work = here.named_upper("web", image)
        status = os.stat(upper)
        assert stat.S_IMODE(status.st_mode) == 0o1711
        assert status.st_mtime_ns == 12_500_000_000
        assert os.getxattr(upper, "user.a") == b"b"
        assert os.path.isdir(work)
        Path(os.fsdecode(upper), "mine").write_text("kept")
        assert here.named_upper("web", image) == (upper, work)
        assert Path(os.fsdecode(upper), "mine").read_text() == "kept"
        with pytest.raises(StoreError, match=r"web is on image [0-9a-f]{12}, not other:latest"):
            here.named_upper("web", other)
        for name in ("", ".", "..", "a/b", "-a", "a b", "x" * 129, "\udcff"):
            with pytest.raises(StoreError, match="is no name for an upper"):
                here.named_upper(name, image)
        with pytest.raises(ImageInUse, match="named upper web"):
            here.remove("r")
        assert here.uppers() == {"web": image.id}
        held = session.try_lock(upper)
        assert held is not None
        with pytest.raises(StoreError, match="web is mounted"):
            here.remove_upper("web")
        os.close(held)
        here.remove_upper("web")
        with pytest.raises(StoreError, match="no named upper web"):
            here.remove_upper("web")
        here.remove("r")
        assert litter(root) == []
        assert not list((root / "uppers").iterdir())


def test_an_upper_whose_row_was_lost_is_found_again(root: Path, sources: dict[str, str]) -> None:
    """A crash between making the directories and the commit."""
    with Store.open(str(root), create=True) as here:
        image = here.import_image(sources["base"], "base")
        here.named_upper("u", image)
        with here.refs().transaction():
            here.refs().remove_upper("u")
        upper, _ = here.named_upper("u", image)
        assert os.path.isdir(upper)
        assert here.uppers() == {"u": image.id}


# --- fsck


def test_fsck(root: Path, sources: dict[str, str]) -> None:
    with Store.open(str(root), create=True) as here:
        here.import_image(sources["base"], "base")
        image = here.import_image(sources["both"], "both")
        new, big = here.objects().path(digest_of(b"N" * 6000)), digest_of(b"B" * 5000)
        os.unlink(new)
        os.chmod(here.objects().path(big), 0o644)
        Path(os.fsdecode(here.objects().path(big))).write_bytes(b"C" * 5000)
        os.unlink(image.layer_indexes[1])
        found = problems(root)
        assert len(found) == 3
        assert any("index is missing" in what for what in found)
        assert any("is missing from the store" in what for what in found)
        assert any(f"{big} is damaged" in what for what in found)


def test_collection_deletes_nothing_beside_damage(root: Path, sources: dict[str, str]) -> None:
    with Store.open(str(root), create=True) as here:
        here.import_image(sources["base"], "base")
        image = here.import_image(sources["other"], "other")
        os.chmod(image.image_index, 0o644)
        with open(image.image_index, "r+b") as file:
            file.truncate(1000)
        before = sorted(here.objects())
        with pytest.raises(IndexCorrupt):
            here.remove("base")
        assert sorted(here.objects()) == before


# --- the place


def test_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAYERSTORE_ROOT", "rel")
    monkeypatch.chdir(tmp_path)
    assert place.default_root() == os.fsencode(tmp_path / "rel")
    monkeypatch.delenv("LAYERSTORE_ROOT")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert place.default_root() == b"/data/layerstore"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert place.default_root() == b"/home/me/.local/share/layerstore"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(place, "in_initial_user_namespace", lambda: True)
    assert place.default_root() == b"/var/lib/layerstore"
    monkeypatch.setattr(place, "in_initial_user_namespace", lambda: False)
    assert place.default_root() == b"/home/me/.local/share/layerstore"


def test_nobody_else_looks_into_a_store(root: Path) -> None:
    Store.open(str(root), create=True).close()
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_a_store_of_a_newer_version(root: Path) -> None:
    Store.open(str(root), create=True).close()
    with sqlite3.connect(root / "refs.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match=f"version 99, this program knows {schema.VERSION}"):
        Store.open(str(root))


def test_a_database_that_is_none(root: Path) -> None:
    root.mkdir()
    (root / "refs.sqlite").write_bytes(b"no database" * 500)
    with pytest.raises(StoreError, match=r"refs\.sqlite: file is not a database"):
        Store.open(str(root))


@pytest.mark.parametrize("name", ["50%?#", "\udcff"])
def test_any_root(tmp_path: Path, sources: dict[str, str], name: str) -> None:
    root = tmp_path / name
    with Store.open(os.fsencode(root), create=True) as here:
        here.import_image(sources["base"], "base")
    assert problems(root) == []


# --- objects


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    for name in ("objects", "staging"):
        (tmp_path / name).mkdir()
    return Staging(Objects(bytes(tmp_path / "objects")), bytes(tmp_path / "staging"))


def test_objects(staging: Staging, tmp_path: Path) -> None:
    objects = staging.objects
    contents = [b"", b"a", b"b" * 3_000_000]
    digests = [staging.add_bytes(content) for content in contents]
    assert [staging.add([content[:1], content[1:]]) for content in contents] == digests
    assert digests == [digest_of(content) for content in contents]
    assert not any(objects.has(digest) for digest in digests)
    assert len(os.listdir(tmp_path / "staging")) == 3
    staging.sync()
    staging.place()
    staging.sync_names()
    assert sorted(objects) == sorted(digests)
    for digest, content in zip(digests, contents, strict=True):
        objects.verify(digest)
        with open(objects.open(digest), "rb") as file:
            assert file.read() == content
            assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o444
    assert os.listdir(tmp_path / "staging") == []
    again = Staging(objects, bytes(tmp_path / "staging"))
    assert again.add_bytes(b"a") == digests[1]
    assert again.add([b"b" * 3_000_000]) == digests[2]
    assert os.listdir(tmp_path / "staging") == []
    assert again.new_bytes == 0


def test_many_objects_are_synced_together(staging: Staging) -> None:
    digests = {staging.add_bytes(b"%d" % number) for number in range(100)}
    staging.sync()
    staging.place()
    staging.sync_names()
    assert set(staging.objects) == digests


def test_a_strict_umask_changes_nothing(staging: Staging) -> None:
    old = os.umask(0o777)
    try:
        staging.add_bytes(b"x")
        staging.sync()
        staging.place()
    finally:
        os.umask(old)
    path = staging.objects.path(digest_of(b"x"))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o444


def test_objects_that_are_not_there_or_not_right(staging: Staging) -> None:
    digest = staging.add_bytes(b"right")
    with pytest.raises(ObjectMissing, match=digest):
        staging.objects.open(digest)
    staging.place()
    os.chmod(staging.objects.path(digest), 0o644)
    Path(os.fsdecode(staging.objects.path(digest))).write_bytes(b"wrong")
    with pytest.raises(ObjectCorrupt) as error:
        staging.objects.verify(digest)
    assert error.value.found == digest_of(b"wrong")


def test_a_source_that_breaks_leaves_no_file(staging: Staging, tmp_path: Path) -> None:
    def broken() -> list[bytes]:
        raise OSError(5, "broken")

    with pytest.raises(OSError, match="broken"):
        staging.add_sparse(((0, broken()) for _ in range(1)), 0)
    assert os.listdir(tmp_path / "staging") == []


def test_a_sparse_file_whose_map_ends_with_an_empty_run(staging: Staging) -> None:
    content = b"data" + bytes(5000)
    digest = staging.add_sparse([(0, [b"data"]), (len(content), [])], len(content))
    assert digest == digest_of(content)
    staging.place()
    staging.objects.verify(digest)


# --- small parts


def test_chain_ids() -> None:
    """The example of the OCI image spec: each is the digest of the last, a space and the next."""
    one, two, three = (digest_of(text) for text in (b"1", b"2", b"3"))
    assert chain_id([one]) == one
    assert chain_id([one, two]) == digest_of(f"{one} {two}".encode())
    assert chain_id([one, two, three]) == digest_of(f"{chain_id([one, two])} {three}".encode())


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("debian", "debian:latest"),
        ("debian:12", "debian:12"),
        ("localhost:5000/a/b__c", "localhost:5000/a/b__c:latest"),
        ("Registry.example.org/a-b:V1.0_x", "Registry.example.org/a-b:V1.0_x"),
        ("[::1]:5000/a", "[::1]:5000/a:latest"),
    ],
)
def test_image_names(name: str, full: str) -> None:
    assert names.full_name(name) == full


@pytest.mark.parametrize(
    "name", ["", "A", "a/", "/a", "a:", ":a", "a:b/c", "a//b", "a b", "a\n", "a___b", "é", "a@b"]
)
def test_no_image_names(name: str) -> None:
    with pytest.raises(StoreError, match="is no name for an image"):
        names.full_name(name)


@pytest.mark.parametrize("name", [b"a\nb", b"\xff", b"\x1b[31m", "ü\n".encode()])
def test_names_in_messages_stay_on_one_line(name: bytes) -> None:
    assert show(name).isprintable()
    assert show(b"plain \xc3\xbc") == "plain ü"
