"""A disk that is full to the last block: clear errors, no litter, and a way to free space."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerstore import room
from layerstore.cli import run
from layerstore.commit.committing import Committed, commit
from layerstore.commit.config import Description
from layerstore.errors import NoRoom
from layerstore.store import Store
from tests.layerstore.archives import Item, layout_of, tar_of
from tests.layerstore.stores import BASE, TOP, image_ids, litter, problems
from tests.layerstore.test_index import mounted

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a small filesystem needs root to mount")


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A small filesystem, with a store on it that has two images."""
    if request.param == "tmpfs":
        how = ["-t", "tmpfs", "-o", "size=8m", "tmpfs"]
    else:
        image = tmp_path / "disk"
        image.touch()
        os.truncate(image, 12 << 20)
        command = ["mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", str(image)]
        subprocess.run(command, check=True, capture_output=True)
        how = ["-o", "loop", str(image)]
    big = tar_of(
        [Item("x", os.urandom(1 << 20)), *(Item(f"f{n}", os.urandom(900)) for n in range(300))]
    )
    sources = {
        "small": layout_of([BASE, TOP]).archive(tmp_path / "small.tar"),
        "big": layout_of([big], compress="").archive(tmp_path / "big.tar"),
    }
    with (
        mounted(tmp_path / "mnt", *how) as place,
        Store.open(str(place / "store"), create=True) as store,
    ):
        for name, source in sources.items():
            store.import_image(source, name)
        store.close()
        yield place


def fill(disk: Path) -> None:
    """Take every block that is left."""
    with open(disk / "fill", "ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)


def test_images_can_be_removed(disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = disk / "store"
    fill(disk)
    assert run(["--root", str(root), "images"]) == 0
    fill(disk)
    assert run(["--root", str(root), "rm", "big"]) == 0
    assert capfd.readouterr().err == ""
    assert (root / "reserve").stat().st_blocks * 512 >= room.RESERVE_SIZE
    assert problems(root) == []
    assert litter(root) == []
    fill(disk)
    assert run(["--root", str(root), "gc"]) == 0
    assert len(image_ids(root)) == 1


def test_an_import_and_a_commit_leave_nothing(
    disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = disk / "store"
    other = tar_of([Item(f"o{number}", os.urandom(20_000)) for number in range(200)])
    source = layout_of([other], compress="").archive(tmp_path / "other.tar")
    upper = tmp_path / "upper"
    upper.mkdir()
    for number in range(200):
        (upper / f"u{number}").write_bytes(os.urandom(20_000))
    with open(disk / "fill", "wb") as file:
        free = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - (2 << 20))
    assert run(["--root", str(root), "import", source]) == 1
    err = capfd.readouterr().err
    assert "no space left for the store: nothing was imported" in err
    assert err.count("\n") == 1
    with Store.open(str(root)) as store:
        what = Committed(os.fsencode(upper), None, "small", "the upper", userxattr=True)
        with pytest.raises(NoRoom):
            commit(store, what, Description(0, "a test"), "committed")
    assert litter(root) == []
    assert problems(root) == []
    assert len(image_ids(root)) == 2


def test_without_the_reserve_it_is_said(disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = disk / "store"
    fill(disk)
    (root / "reserve").unlink()
    fill(disk)
    for words in (["rm", "big"], ["tag", "small", "again"], ["lease", "add", "small"], ["images"]):
        status = run(["--root", str(root), *words])
        err = capfd.readouterr().err
        assert status == 0 or "no space left" in err.lower(), err
        assert status == 0 or err.count("\n") == 1
    (disk / "fill").unlink()
    assert problems(root) == []
    with Store.open(str(root)) as store:
        store.collect()
    assert litter(root) == []
    assert (root / "reserve").exists()
