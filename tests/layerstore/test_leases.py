"""Leases, and the mounts of the kernel's that nobody holds a lock for."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from layerstore import in_use, schema
from layerstore.cli import run
from layerstore.errors import ImageInUse, ImageUnknown, StoreError
from layerstore.store import Image, Store
from tests.layerstore.archives import layout_of
from tests.layerstore.stores import BASE, TOP, litter, problems
from tests.layerstore.test_index import mounted

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting EROFS needs root")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def here(root: Path) -> Iterator[Store]:
    with Store.open(str(root), create=True) as store:
        yield store


@pytest.fixture
def image(here: Store, tmp_path: Path) -> Image:
    return here.import_image(layout_of([BASE, TOP]).archive(tmp_path / "image.tar"), "name")


def test_a_leased_image_stays(here: Store, image: Image, root: Path) -> None:
    lease = here.leases.add(image.id, name="mine", owner="a test")
    assert here.leases.all() == [lease]
    here.tag("name", "again")
    here.remove("again")  # a tag more or less is no matter
    for force in (False, True):
        with pytest.raises(ImageInUse, match="kept by the lease mine of a test"):
            here.remove("name", force=force)
    here.collect()
    assert here.resolve("name").id == image.id
    here.leases.remove("mine")
    here.remove("name")
    assert (problems(root), litter(root)) == ([], [])


def test_a_lease_ends(here: Store, image: Image) -> None:
    here.leases.add(image.id, name="short", seconds=0.01)
    here.leases.add(image.id, name="long", seconds=3600)
    time.sleep(0.02)
    assert [lease.name for lease in here.leases.all()] == ["long"]
    here.leases.add(image.id, name="short")  # an ended one does not keep its name
    here.leases.remove("short")
    with pytest.raises(ImageInUse, match="the lease long"):
        here.remove("name")
    here.leases.remove("long")
    here.leases.add(image.id, seconds=0.01)
    time.sleep(0.02)
    here.remove("name")


def test_leases_that_cannot_be(here: Store, image: Image) -> None:
    here.leases.add(image.id, name="mine")
    with pytest.raises(StoreError, match="there is a lease mine already"):
        here.leases.add(image.id, name="mine")
    with pytest.raises(StoreError, match="no name for a lease"):
        here.leases.add(image.id, name="a/b")
    with pytest.raises(StoreError, match="more than nothing"):
        here.leases.add(image.id, seconds=0)
    with pytest.raises(StoreError, match="no lease other"):
        here.leases.remove("other")
    with pytest.raises(ImageUnknown, match="has just been removed"):
        here.leases.add("sha256:" + "0" * 64)
    assert [lease.name for lease in here.leases.all()] == ["mine"]


def test_the_commands(
    here: Store, image: Image, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def layerstore(*words: str) -> tuple[int, str, str]:
        status = run(["--root", str(root), *words])
        return status, *capfd.readouterr()

    assert layerstore("lease", "add", "name", "--name", "one", "--owner", "me") == (0, "one\n", "")
    status, out, _ = layerstore("lease", "add", "--for", "1.5h", "name", "--json")
    assert status == 0
    made = json.loads(out)
    assert made["expires"] - made["made"] == pytest.approx(5400)
    status, out, _ = layerstore("lease", "ls")
    assert out.splitlines()[1].split() == ["one", image.id[7:19], "removed", "me"]
    assert layerstore("rm", "name")[0] == 1
    assert layerstore("lease", "rm", "one", made["name"], "two")[0] == 1
    assert layerstore("lease", "ls", "--json")[1] == "[]\n"
    assert layerstore("rm", "name")[0] == 0
    with pytest.raises(SystemExit):
        run(["lease", "add", "name", "--for", "1y"])


def test_a_store_of_an_older_version_is_brought_up(
    here: Store, image: Image, root: Path, tmp_path: Path
) -> None:
    for version in range(1, schema.VERSION):
        old = tmp_path / f"version-{version}"
        subprocess.run(["cp", "-a", root, old], check=True)
        path = old / "refs.sqlite"
        tables = _rows(path)
        path.unlink()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
            for step in schema.STEPS[:version]:
                for statement in step.split(";"):
                    database.execute(statement)
            there = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
            for table, rows in tables.items():
                for row in rows if table in there else []:
                    database.execute(
                        f"INSERT INTO {table} VALUES ({','.join('?' * len(row))})", row
                    )
            database.execute(f"PRAGMA user_version = {version}")
        assert problems(old) == []
        with Store.open(str(old)) as store:
            assert store.resolve("name").id == image.id
            store.leases.add(image.id)
            with pytest.raises(ImageInUse):
                store.remove("name")


def _rows(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        query = "SELECT name FROM sqlite_master WHERE type = 'table'"
        names = [name for (name,) in database.execute(query)]
        return {name: database.execute(f"SELECT * FROM {name}").fetchall() for name in names}


# --- mounts of the kernel's


@needs_root
def test_what_the_kernel_has_mounted_is_in_use(here: Store, image: Image, tmp_path: Path) -> None:
    index = os.fsdecode(image.image_index)
    with mounted(tmp_path / "m", "-t", "erofs", index) as place:
        assert list(in_use.mounts_of(image.image_index)) != []
        with pytest.raises(ImageInUse, match="mounted or being read"):
            here.remove("name")
        inside = os.open(place, os.O_RDONLY)
        subprocess.run(["umount", "-l", place], check=True)
        # Detached and still used: no mount table shows it.
        assert list(in_use.mounts_of(image.image_index)) == []
        with pytest.raises(ImageInUse):
            here.remove("name")
        os.close(inside)
        subprocess.run(["mount", "-t", "erofs", index, place], check=True)
    here.remove("name")


@needs_root
def test_a_mount_in_a_namespace_without_a_process(
    here: Store, image: Image, tmp_path: Path, root: Path
) -> None:
    place = tmp_path / "m"
    place.mkdir()
    layer = os.fsdecode(image.layer_indexes[0])
    with mounted(tmp_path / "private", "-t", "tmpfs", "tmpfs") as private:
        subprocess.run(["mount", "--make-private", private], check=True)
        pinned = private / "namespace"
        pinned.touch()
        command = ["unshare", f"--mount={pinned}", "mount", "-t", "erofs", layer, str(place)]
        subprocess.run(command, check=True)
        try:
            assert list(in_use.mounts_of(image.layer_indexes[0])) == []
            here.remove("name")
            assert os.path.exists(image.layer_indexes[0])
            assert problems(root) == []
        finally:
            subprocess.run(["umount", pinned], check=True)
    here.collect()
    assert litter(root) == []


def test_the_lease_of_a_mount_ends_with_it(here: Store, image: Image) -> None:
    with open(image.image_index, "rb"):  # as a mounted EROFS holds it
        lease = here.leases.add_mount(image.id, b"/somewhere", "upper")
        assert here.leases.all() == [lease]
        assert here.leases.mount_of_upper("upper") == b"/somewhere"
        with pytest.raises(ImageInUse, match="mounted by the kernel on /somewhere: unmount it"):
            here.remove("name")
        with pytest.raises(StoreError, match="the kernel's mount on /somewhere"):
            here.leases.remove(lease.name)
    assert here.leases.all() == []
    assert here.leases.mount_of_upper("upper") is None
    here.remove("name")


def test_the_lease_of_a_mount_ends_with_the_machine(
    here: Store, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(image.image_index, "rb"):
        here.leases.add_mount(image.id, b"/somewhere", None)
        monkeypatch.setattr(in_use, "boot_id", lambda: "another")
        assert here.leases.all() == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES])
def test_without_proof_a_mounted_image_is_kept(
    here: Store, image: Image, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As on NFS, or in a store that is somebody else's."""
    plain = fcntl.fcntl

    def no_leases(fd: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETLEASE:
            raise OSError(number, os.strerror(number))
        return plain(fd, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", no_leases)
    lease = here.leases.add_mount(image.id, b"/somewhere", None)
    with pytest.raises(ImageInUse, match="/somewhere"):
        here.remove("name")
    here.leases.remove(lease.name, force=True)
    here.remove("name")  # what no mount table shows and no lease names may go
