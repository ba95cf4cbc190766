"""A checkout is the image's tree, whole or not at all. Against mounts and umoci: tests/images."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerstore import importer  # noqa: F401 - where no privilege is left, no more is imported
from layerstore.checkout import checkout
from layerstore.cli import run
from layerstore.errors import ObjectMissing, StoreError
from layerstore.store import Image, Store
from tests.images.trees import differences, read
from tests.layerstore.archives import Item, folder, hard_link, layout_of, symlink, tar_of
from tests.layerstore.test_crash import in_child
from tests.layerstore.test_index import mounted

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")

BIG = bytes(range(256)) * 40
ITEMS = [
    folder("etc", 0o755, mtime=1.5),
    Item("etc/plain", BIG, mtime=1_234_567_890.25),
    Item("etc/read-only", BIG, mode=0o444, uid=5, gid=6),
    Item("etc/small", b"small", mode=0o600),
    Item("etc/program", BIG + b"1", mode=0o4755, uid=7),
    Item("etc/marked", BIG + b"2", xattrs={"user.x": "1"}),
    folder("etc/closed", 0o500, mtime=-1.5),
    Item("etc/closed/inside", b"inside"),
    hard_link("etc/other", "etc/plain"),
    symlink("link", "etc/plain"),
    hard_link("link again", "link"),
    Item("fifo", None, tarfile.FIFOTYPE, mode=0o640),
]
DEVICES = [
    Item("null", None, tarfile.CHRTYPE, device=(1, 3), mode=0o666),
    hard_link("null too", "null"),
    Item("kept", b"kept", xattrs={"trusted.x": "1"}),
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(str(tmp_path / "store"), create=True) as opened:
        yield opened


def image_of(store: Store, place: Path, items: list[Item]) -> Image:
    return store.import_image(layout_of([tar_of(items)]).archive(place / "image.tar"), "made")


def left(place: Path) -> set[str]:
    return set(os.listdir(place)) - {"store", "image.tar"}


@needs_root
@pytest.mark.parametrize("mode", ["auto", "copy"])
def test_everything_is_written(store: Store, tmp_path: Path, mode: str) -> None:
    image = image_of(store, tmp_path, ITEMS + DEVICES)
    written = checkout(store, image, tmp_path / "out", mode)
    tree = read(tmp_path / "out")
    plain, program = tree[b"etc/plain"], tree[b"etc/program"]
    assert (tmp_path / "out/etc/plain").read_bytes() == BIG
    assert (plain.mode, plain.mtime_ns, plain.nlink) == (0o644, 1_234_567_890_250_000_000, 2)
    assert plain.same == (b"etc/other", b"etc/plain")
    assert (program.mode, program.uid) == (0o4755, 7)
    assert tree[b"etc/marked"].xattrs == (("user.x", b"1"),)
    assert tree[b"kept"].xattrs == (("trusted.x", b"1"),)
    assert tree[b"etc/closed"].mode == 0o500
    assert tree[b"etc/closed"].mtime_ns == -1_500_000_000
    assert tree[b"etc"].mtime_ns == 1_500_000_000
    assert tree[b"link"].content == b"etc/plain"
    assert tree[b"link"].same == (b"link", b"link again")
    assert (tree[b"fifo"].kind, tree[b"fifo"].mode) == (stat.S_IFIFO, 0o640)
    assert tree[b"null"].rdev == os.makedev(1, 3)
    assert tree[b"null"].same == (b"null", b"null too")
    assert (written.entries, written.files) == (len(tree) - 1, 7)
    assert (written.linked, written.devices, written.xattrs) == (0, 0, 0)
    assert left(tmp_path) == {"out"}


@needs_root
def test_hard_links_share_what_can_be_shared(store: Store, tmp_path: Path) -> None:
    image = image_of(store, tmp_path, ITEMS)
    written = checkout(store, image, tmp_path / "out", "hardlink")
    assert written.linked == 2
    out = tmp_path / "out/etc"
    status = {name: os.stat(out / name) for name in os.listdir(out)}
    shared = status["plain"]
    # One object under all names that have its content, whatever the image says of them.
    assert shared.st_ino == status["other"].st_ino == status["read-only"].st_ino
    assert (stat.S_IMODE(shared.st_mode), shared.st_uid) == (0o444, 0)
    assert (out / "plain").read_bytes() == BIG
    assert (stat.S_IMODE(status["program"].st_mode), status["program"].st_uid) == (0o4755, 7)
    for name in ("program", "marked", "small"):
        assert status[name].st_nlink == 1


def test_holes_stay_holes(store: Store, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with (tree / "sparse").open("wb") as file:
        file.write(b"start" * 1000)
        file.seek(1 << 22)
        file.write(b"end")
    with (tree / "hole").open("wb") as file:
        file.truncate(1 << 22)
    image = store.import_image(f"dir:{tree}", "made")
    checkout(store, image, tmp_path / "out")
    for name in ("sparse", "hole"):
        assert (tmp_path / "out" / name).read_bytes() == (tree / name).read_bytes()
        assert os.stat(tmp_path / "out" / name).st_blocks * 512 < 1 << 20


def test_into_an_empty_directory_and_no_other(store: Store, tmp_path: Path) -> None:
    image = image_of(store, tmp_path, [Item("file", b"x")])
    (tmp_path / "empty").mkdir()
    checkout(store, image, tmp_path / "empty")
    assert os.listdir(tmp_path / "empty") == ["file"]
    (tmp_path / "plain").touch()
    for name in ("empty", "plain"):
        with pytest.raises(StoreError, match="is not an empty directory: name one, or a new one"):
            checkout(store, image, tmp_path / name)
    with pytest.raises(StoreError, match="nothing can be made there"):
        checkout(store, image, tmp_path / "no/such")
    assert left(tmp_path) == {"empty", "plain"}


def test_nothing_is_left_of_one_that_fails(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = image_of(store, tmp_path, ITEMS)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "symlink", full)
        with pytest.raises(StoreError, match=r"out: /link: No space left on device"):
            checkout(store, image, tmp_path / "out")
    assert left(tmp_path) == set()
    for digest in list(store.objects()):
        store.objects().remove(digest)
    for mode in ("copy", "hardlink"):
        with pytest.raises(ObjectMissing):
            checkout(store, image, tmp_path / "out", mode)
    assert left(tmp_path) == set()


def test_reflinks_or_a_clear_refusal(store: Store, tmp_path: Path) -> None:
    image = image_of(store, tmp_path, ITEMS[:2])
    if clones(tmp_path):
        assert checkout(store, image, tmp_path / "out", "reflink").cloned == 1
        assert checkout(store, image, tmp_path / "auto").cloned == 1
        assert (tmp_path / "out/etc/plain").read_bytes() == BIG
        return
    with pytest.raises(StoreError, match="--mode=copy does not need to"):
        checkout(store, image, tmp_path / "out", "reflink")
    assert left(tmp_path) == set()


@needs_root
@pytest.mark.skipif(shutil.which("mkfs.btrfs") is None, reason="no filesystem with reflinks")
def test_blocks_are_shared_where_the_filesystem_can(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(128 << 20)
    subprocess.run(["mkfs.btrfs", "-q", disk], check=True)
    with (
        mounted(tmp_path / "btrfs", "-o", "loop", str(disk)) as place,
        Store.open(str(place / "store"), create=True) as store,
    ):
        image = image_of(store, place, ITEMS + DEVICES)
        assert clones(place)
        for mode in ("auto", "reflink"):
            written = checkout(store, image, place / mode, mode)
            assert (written.cloned, written.linked) == (4, 0)
        checkout(store, image, place / "copy", "copy")
        assert differences(read(place / "reflink"), read(place / "copy")) == []
        assert differences(read(place / "auto"), read(place / "copy")) == []


def clones(place: Path) -> bool:
    """Whether the filesystem has reflinks."""
    with tempfile.TemporaryFile(dir=place) as one, tempfile.TemporaryFile(dir=place) as other:
        one.write(bytes(4096))
        one.flush()
        try:
            fcntl.ioctl(other, 0x40049409, one.fileno())
        except OSError:
            return False
    return True


@needs_root
def test_without_privilege() -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        os.chown(place, 54321, 54321)
        source = layout_of([tar_of(ITEMS + DEVICES)]).archive(place / "image.tar")

        def work() -> None:
            os.setgroups([])
            os.setgid(54321)
            os.setuid(54321)
            with Store.open(name + "/store", create=True) as store:
                image = store.import_image(source, "made")
                written = checkout(store, image, place / "out")
                assert (written.devices, written.xattrs) == (1, 1), written
                store.objects().remove(next(iter(store.objects())))
                with pytest.raises(ObjectMissing):
                    checkout(store, image, place / "again")

        assert in_child(work) == 0
        tree = read(place / "out")
        assert b"null" not in tree
        assert {(file.uid, file.gid) for file in tree.values()} == {(54321, 54321)}
        assert tree[b"etc/program"].mode == 0o4755
        assert tree[b"etc/closed"].mode == 0o500
        assert tree[b"etc/marked"].xattrs == (("user.x", b"1"),)
        assert left(place) == {"out"}


def test_the_command(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image_of(store, tmp_path, [Item("file", BIG), Item("other", b"x")])
    command = ["--root", str(tmp_path / "store"), "checkout", "made"]
    assert run([*command, str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("2 entries, 10.2 kB in 2 files")
    assert run([*command, str(tmp_path / "json"), "--mode=hardlink", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["linked"] == 1
    assert run([*command, str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
