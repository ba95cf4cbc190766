"""Import: every kind of source gives the same image; what is bad is refused whole, in one line."""

from __future__ import annotations

import gzip
import io
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layerstore.errors import StoreError
from layerstore.index.reader import Index, Inline, Object
from layerstore.store import Image, Store
from tests.layerstore.archives import (
    OCI,
    Item,
    digest_of,
    docker_archive,
    gzipped,
    layout_of,
    tar_of,
    zstandard_of,
)
from tests.layerstore.stores import BASE, TOP, imported


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def listing(image: Image, objects: Path) -> dict[str, Any]:
    """The tree of an image with the content of its files."""
    rows: dict[str, Any] = {}
    with Index(image.image_index) as index:

        def visit(path: str, nid: int) -> None:
            status = index.stat(nid)
            if stat.S_ISDIR(status.mode):
                for name, child, _ in index.entries(nid):
                    visit(f"{path}/{os.fsdecode(name)}", child)
                rows[path] = (status.mode, status.mtime_ns)
            elif stat.S_ISREG(status.mode):
                content = index.content(nid)
                if isinstance(content, Object):
                    data = (objects / os.fsdecode(content.path)).read_bytes()
                else:
                    assert isinstance(content, Inline)
                    data = content.data
                rows[path] = (status.mode, status.uid, status.gid, status.nlink, data)
            else:
                rows[path] = index.readlink(nid)

        visit("", index.root_nid)
    return rows


def check_image(image: Image, root: Path) -> None:
    """Compare with what BASE and TOP make."""
    rows = listing(image, root / "objects")
    assert set(rows) == {
        *("", "/etc", "/etc/hostname", "/etc/big", "/etc/big-link", "/etc/new", "/etc/copy"),
        "/link",
    }
    assert rows["/etc"] == (stat.S_IFDIR | 0o755, 1_500_000_000)
    assert rows["/etc/hostname"][-1] == b"top\n"
    assert rows["/etc/big"] == (stat.S_IFREG | 0o600, 7, 8, 2, b"B" * 5000)
    assert rows["/link"] == b"etc/big"
    assert [layer.diff_id for layer in image.layers] == [digest_of(BASE), digest_of(TOP)]


SOURCES: dict[str, Callable[[Path], str]] = {
    "oci": lambda tmp: layout_of([BASE, TOP]).directory(tmp / "layout"),
    "oci-archive": lambda tmp: layout_of([BASE, TOP]).archive(tmp / "a.tar"),
    "oci-archive zstd": lambda tmp: layout_of([BASE, TOP], compress="zstd").archive(tmp / "z.tar"),
    "oci-archive plain": lambda tmp: layout_of([BASE, TOP], compress="").archive(tmp / "p.tar"),
    "docker-archive": lambda tmp: docker_archive(tmp / "d.tar", [BASE, TOP]),
}


@pytest.mark.parametrize("source", SOURCES)
def test_sources(tmp_path: Path, root: Path, source: str) -> None:
    image = imported(root, SOURCES[source](tmp_path), "name")
    assert image.tags == ["name:latest"]
    check_image(image, root)
    assert all(
        stat.S_IMODE(path.stat().st_mode) == 0o444
        for path in (root / "objects").rglob("*")
        if path.is_file()
    )


@pytest.mark.parametrize("source", SOURCES)
def test_a_path_alone_is_looked_at(tmp_path: Path, root: Path, source: str) -> None:
    _, _, path = SOURCES[source](tmp_path).partition(":")
    check_image(imported(root, path), root)


def test_a_compressed_archive(tmp_path: Path, root: Path) -> None:
    docker_archive(tmp_path / "d.tar", [BASE, TOP])
    packed = tmp_path / "d.tar.gz"
    packed.write_bytes(gzip.compress((tmp_path / "d.tar").read_bytes()))
    check_image(imported(root, f"docker-archive:{packed}"), root)


def test_every_source_gives_the_same_layers(tmp_path: Path, root: Path) -> None:
    images = [imported(root, make(tmp_path)) for make in SOURCES.values()]
    assert len({image.chain_id for image in images}) == 1
    assert len(list((root / "layers").glob("*.erofs"))) == 2
    # BASE and TOP have the same 5000 bytes.
    assert len([path for path in (root / "objects").rglob("*") if path.is_file()]) == 3


@pytest.mark.parametrize("pack", [bytes, gzipped, zstandard_of])
def test_tar(tmp_path: Path, root: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "root.tar"
    path.write_bytes(pack(BASE))
    image = imported(root, f"tar:{path}", "base:1")
    assert image.layers[0].diff_id == digest_of(BASE)
    assert listing(image, root / "objects")["/etc/hostname"][-1] == b"base\n"
    assert image.config["rootfs"]["diff_ids"] == [digest_of(BASE)]
    assert imported(root, f"tar:{path}").id == image.id


def test_standard_input(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "layerstore", "--root", str(root), "import", "tar:-", "--json"],
        input=gzipped(BASE),
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout)["layers"] == [digest_of(BASE)]
    assert done.stderr == b""


def test_a_directory(tmp_path: Path, root: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "big").write_bytes(b"B" * 5000)
    os.link(tree / "etc" / "big", tree / "etc" / "link")
    os.symlink("etc", tree / "s")
    with open(tree / "sparse", "wb") as file:
        os.truncate(file.fileno(), 1 << 40)
    os.utime(tree / "etc", ns=(0, 123_456_789))
    tree.chmod(0o711)
    image = imported(root, f"dir:{tree}", "tree")
    with Index(image.image_index) as index:
        etc = index.lookup(index.root_nid, b"etc")
        sparse = index.lookup(index.root_nid, b"sparse")
        assert etc is not None
        assert sparse is not None
        assert index.stat(index.root_nid).mode == stat.S_IFDIR | 0o711
        assert index.stat(etc).mtime_ns == 123_456_789
        assert index.lookup(etc, b"big") == index.lookup(etc, b"link")
        assert index.stat(sparse).size == 1 << 40
    assert imported(root, f"dir:{tree}").id == image.id


def test_names_in_the_source(tmp_path: Path, root: Path) -> None:
    source = docker_archive(tmp_path / "d.tar", [BASE], ["localhost/a:1", "b:latest", "Bad:1"])
    assert imported(root, source).tags == ["b:latest", "localhost/a:1"]
    source = layout_of([TOP], name="example.org/x:2").archive(tmp_path / "o.tar")
    assert imported(root, source).tags == ["example.org/x:2"]
    source = layout_of([BASE, TOP], name="latest").archive(tmp_path / "p.tar")
    assert imported(root, source).tags == []


def test_one_of_several_in_a_layout(tmp_path: Path, root: Path) -> None:
    layout, other = layout_of([BASE], name="one"), layout_of([TOP], name="two")
    layout.blobs.update(other.blobs)
    layout.index["manifests"] += other.index["manifests"]
    source = layout.directory(tmp_path / "l")
    assert imported(root, f"{source}:two").layers[0].diff_id == digest_of(TOP)
    with Store.open(str(root)) as store:
        with pytest.raises(StoreError, match=r"which image\? Append :TAG; it has one, two"):
            store.import_image(source)
        with pytest.raises(StoreError, match="'three'; it has one, two"):
            store.import_image(f"{source}:three")


def test_platforms(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, other = layout_of([BASE]), layout_of([TOP])
    layout.blobs.update(other.blobs)
    manifests = [*layout.index["manifests"], *other.index["manifests"]]
    for manifest, name in zip(manifests, ("pdp11", "amd64"), strict=True):
        manifest["platform"] = {"os": "linux", "architecture": name}
    index = layout.add_json({"schemaVersion": 2, "manifests": manifests}, f"{OCI}.index.v1+json")
    layout.index["manifests"] = [index]
    source = layout.archive(tmp_path / "a.tar")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert imported(root, source).layers[0].diff_id == digest_of(TOP)
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    with (
        Store.open(str(root)) as store,
        pytest.raises(StoreError, match="no image for linux/vax; it has linux/pdp11, linux/amd64"),
    ):
        store.import_image(source)


def test_the_same_layer_twice_and_none_at_all(tmp_path: Path, root: Path) -> None:
    empty = tar_of([])
    image = imported(root, layout_of([BASE, empty, TOP, empty]).archive(tmp_path / "a.tar"))
    assert len(image.layers) == 4
    assert imported(root, layout_of([]).archive(tmp_path / "b.tar")).layers == []


# --- real parts

TOOLS = [shutil.which(tool) for tool in ("skopeo", "umoci")]


@pytest.mark.skipif(None in TOOLS, reason="skopeo and umoci (Debian packages) are not installed")
def test_as_skopeo_copies_and_umoci_unpacks(tmp_path: Path, root: Path) -> None:
    layout_of([BASE, TOP], name="x").directory(tmp_path / "layout")
    copy = ["skopeo", "--insecure-policy", "copy", "--quiet", f"oci:{tmp_path}/layout:x"]
    ids = {imported(root, f"oci:{tmp_path}/layout:x").id}
    for source in (
        f"oci-archive:{tmp_path}/o.tar:x:1",
        f"docker-archive:{tmp_path}/d.tar:example.org/x:1",
        f"dir:{tmp_path}/skopeo-dir",
    ):
        subprocess.run([*copy, source], check=True)
        image = imported(tmp_path / f"store-{source[:3]}", source)
        check_image(image, tmp_path / f"store-{source[:3]}")
        ids.add(image.id)
    assert len(ids) == 1
    unpacked = tmp_path / "unpacked"
    subprocess.run(
        ["umoci", "raw", "unpack", "--image", f"{tmp_path}/layout:x", unpacked]
        if os.geteuid() == 0
        else ["umoci", "raw", "unpack", "--rootless", "--image", f"{tmp_path}/layout:x", unpacked],
        check=True,
        capture_output=True,
    )
    rows = listing(image, tmp_path / "store-dir" / "objects")
    for path, row in rows.items():
        where = f"{unpacked}{path}"
        status = os.lstat(where)
        if stat.S_ISREG(status.st_mode):
            assert Path(where).read_bytes() == row[-1]
            assert (status.st_mode, status.st_nlink) == (row[0], row[3])
        elif stat.S_ISLNK(status.st_mode):
            assert os.fsencode(os.readlink(where)) == row
        elif path:
            assert (status.st_mode, status.st_mtime_ns) == row
    shown = {
        os.path.join(parent, name)[len(str(unpacked)) :]
        for parent, directories, files in os.walk(unpacked)
        for name in directories + files
    }
    assert shown == set(rows) - {""}


def test_memory_does_not_grow_with_the_image(tmp_path: Path, root: Path) -> None:
    block = os.urandom(1 << 20)
    path = tmp_path / "big.tar.gz"
    with gzip.open(path, "wb", 1) as file:
        header = io.BytesIO(tar_of([Item("big", b"")])).getvalue()[:512]
        size = 400 << 20
        block_header = bytearray(header)
        block_header[124:136] = b"%011o\0" % size
        block_header[148:156] = b" " * 8
        block_header[148:156] = b"%06o\0 " % sum(block_header)
        file.write(block_header)
        for number in range(400):
            file.write(block if number % 20 == 0 else bytes(1 << 20))
        file.write(bytes(1024))
    code = (
        "import sys; from layerstore.cli import run\n"
        "assert run(sys.argv[1:]) == 0\n"
        "print(*[line.split()[1] for line in open('/proc/self/status') if 'VmHWM' in line])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--root", str(root), "import", f"tar:{path}"],
        capture_output=True,
        check=True,
    )
    assert int(done.stdout.splitlines()[-1]) < 100 << 10
