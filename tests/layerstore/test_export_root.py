"""Export of root filesystems: a tar or a directory that came in goes out as it was."""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
from pathlib import Path

import pytest

from layerstore.errors import StoreError
from layerstore.export.layers import Compression
from layerstore.store import Store
from tests.layerstore.archives import Item, folder, layout_of, tar_of
from tests.layerstore.stores import BASE, TOP
from tests.layerstore.test_export import PLAIN, export, names_in, take
from tests.layerstore.test_tar import whole_tar


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_one_layer_goes_out_as_it_came(root: Path, tmp_path: Path) -> None:
    (tmp_path / "root.tar").write_bytes(gzip.compress(PLAIN + bytes(9999)))
    take(root, f"tar:{tmp_path}/root.tar", tmp_path)
    export(root, f"tar:{tmp_path}/out")
    assert (tmp_path / "out").read_bytes() == PLAIN + bytes(9999)


def test_several_layers_become_one(root: Path, tmp_path: Path) -> None:
    take(root, layout_of([BASE, TOP]), tmp_path)
    export(root, f"tar:{tmp_path}/out")
    with tarfile.open(tmp_path / "out") as archive:
        found = {member.name: member for member in archive}
        names = [
            "./etc",
            "./etc/big",
            "./etc/big-link",
            "./etc/copy",
            "./etc/hostname",
            "./etc/new",
        ]
        assert sorted(found)[1:] == [*names, "./link"]
        hostname = archive.extractfile("./etc/hostname")
        assert hostname is not None
        assert hostname.read() == b"top\n"
    assert found["./etc/big-link"].islnk()
    assert (found["./etc/big"].uid, found["./etc/big"].mode) == (7, 0o600)
    # What the next import makes of it is the same tree, and so on for ever.
    second = tmp_path / "second"
    with Store.open(str(second), create=True) as store:
        store.import_image(f"tar:{tmp_path}/out", "x")
    export(second, f"tar:{tmp_path}/again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "out").read_bytes()


def test_a_layer_that_hides_something_is_no_root(root: Path, tmp_path: Path) -> None:
    layer = tar_of([folder("d"), Item("d/.wh..wh..opq"), Item(".wh.x"), Item("a/b", b"c")])
    take(root, layout_of([layer]), tmp_path)
    export(root, f"tar:{tmp_path}/out")
    with tarfile.open(tmp_path / "out") as archive:
        assert archive.getnames() == [".", "./a", "./a/b", "./d"]


def make_tree(tree: Path) -> None:
    (tree / "d" / "e").mkdir(parents=True)
    (tree / "d" / "f").write_bytes(b"f" * 9000)
    (tree / "d" / "small").write_bytes(b"s")
    os.link(tree / "d" / "f", tree / "linked")
    os.symlink("d/f", tree / "symlink")
    os.mkfifo(tree / "fifo")
    with open(os.fsencode(tree) + b"/\xff", "wb") as file:
        os.truncate(file.fileno(), 1 << 24)
        os.pwrite(file.fileno(), b"data", 1 << 23)
    with open(tree / "hole", "wb") as file:
        os.truncate(file.fileno(), 1 << 40)
    os.chmod(tree / "d" / "f", 0o4751)
    os.chmod(tree / "d" / "e", 0o1700)
    if os.geteuid() == 0:
        os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.chown(tree / "d" / "small", 3_000_000, 4_000_000)
        os.chown(tree / "symlink", 5, 6, follow_symlinks=False)
        os.setxattr(tree / "d", "trusted.overlay.opaque", b"y")  # content, not a mark
        os.setxattr(tree / "d" / "f", "user.x", b"\0\xff\n=")
        capability = bytes.fromhex("0100000200040000000000000000000000000000")
        os.setxattr(tree / "d" / "f", "security.capability", capability)
    for path in (tree / "d" / "f", tree / "d", tree / "symlink", tree):
        os.utime(path, ns=(1, -123_456_789), follow_symlinks=False)


def test_a_directory_comes_out_as_it_went_in(root: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    make_tree(tree)
    take(root, f"dir:{tree}", tmp_path)
    export(root, f"dir:{tmp_path}/out")
    assert whole_tar(tmp_path / "out") == whole_tar(tree)
    export(root, f"tar:{tmp_path}/out.tar")
    assert (tmp_path / "out.tar").read_bytes() == whole_tar(tree)
    assert names_in(tmp_path) == {"store", "tree", "out", "out.tar"}
    assert os.stat(tmp_path / "out" / "hole").st_blocks < 100


def test_the_tar_of_two_layers_is_the_tar_of_their_directory(root: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    make_tree(tree)
    with Store.open(str(root), create=True) as store:
        store.import_image(f"dir:{tree}", "one")
        with store.layer_tar(store.resolve("one").layers[0].diff_id) as tar:
            first = tar.read()
        take(root, layout_of([first, tar_of([Item("n", b"n" * 999)])]), tmp_path)
    (tree / "n").write_bytes(b"n" * 999)
    os.utime(tree / "n", (0, 0))
    os.chmod(tree / "n", 0o644)
    os.utime(tree, ns=(1, -123_456_789))
    export(root, f"tar:{tmp_path}/out.tar")
    assert (tmp_path / "out.tar").read_bytes() == whole_tar(tree)
    export(root, f"dir:{tmp_path}/out")
    assert whole_tar(tmp_path / "out") == whole_tar(tree)


def test_a_directory_is_not_compressed(root: Path, tmp_path: Path) -> None:
    take(root, layout_of([BASE]), tmp_path)
    with pytest.raises(StoreError, match="leave --compress out"):
        export(root, f"dir:{tmp_path}/out", compression=Compression("gzip"))
    assert not (tmp_path / "out").exists()
