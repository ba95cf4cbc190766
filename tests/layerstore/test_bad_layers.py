"""Layers that want what they must not have: each form of image refuses them whole, naming file and offset."""

from __future__ import annotations

import os
import re
import stat
import tarfile
from pathlib import Path

import pytest

from layerstore.cli import run
from layerstore.index.reader import Index
from layerstore.store import Store
from tests.layerstore.archives import (
    Item,
    docker_archive,
    folder,
    gzipped,
    hard_link,
    layout_of,
    symlink,
    tar_of,
    zstandard_of,
)
from tests.layerstore.stores import BASE, image_ids, imported, litter


def lying(size: int) -> bytes:
    """An archive of one file whose header says `size`, checksum and all."""
    whole = bytearray(tar_of([Item("file", b"x" * 700)], tarfile.GNU_FORMAT))
    whole[124:136] = b"%011o\0" % size
    whole[148:156] = b" " * 8
    whole[148:156] = b"%06o\0 " % sum(whole[:512])
    return bytes(whole)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "absolute": (tar_of([Item("/etc/passwd")]), "absolute"),
    "upwards": (tar_of([folder("a"), Item("a/../../out")]), "leads upwards"),
    "symlink outside": (
        tar_of([symlink("out", "../../../../{outside}"), Item("out/file")]),
        "symlink to nothing",
    ),
    "hard link outside": (tar_of([hard_link("a", "../../out")]), "leads upwards"),
    "hard link through a symlink": (
        tar_of([symlink("out", "/etc"), hard_link("a", "out/passwd")]),
        "not in the layer before",
    ),
    "hard link before its target": (tar_of([hard_link("a", "b"), Item("b")]), "before the hard"),
    "name too long": (tar_of([Item("n" * 256)]), "256 bytes"),
    "path too long": (tar_of([Item("/".join(["d" * 200] * 25))]), "cannot be"),
    "symlinks in a circle": (
        tar_of([symlink("a", "b"), symlink("b", "a"), Item("a/x")]),
        "in a circle",
    ),
    "whiteout of no name": (tar_of([Item(".wh.")]), "no name"),
    "whiteout of the directory above": (tar_of([Item("a/.wh...")]), "no name"),
    "size too large": (lying(50_000), "cut short"),
    "size too small": (lying(512), "no tar header"),
    "size beyond all bounds": (lying(0o77777777777), "cut short"),
    "cut in a file": (BASE[: BASE.index(b"B" * 5000) + 100], "cut short"),
    "cut in a header": (BASE[:3000], "cut short"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.mark.parametrize("form", ["tar", "oci", "docker"])
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_layers(
    tmp_path: Path, root: Path, capfd: pytest.CaptureFixture[str], case: str, form: str
) -> None:
    layer, message = HOSTILE[case]
    archive = tmp_path / "image.tar"
    if form == "tar":
        archive.write_bytes(layer)
        source = f"tar:{archive}"
    elif form == "oci":
        # What comes before is imported, and must not stay either.
        source = layout_of([BASE, layer]).archive(archive)
    else:
        source = docker_archive(archive, [BASE, layer])
    before = sorted(os.listdir(tmp_path))
    assert run(["--root", str(root), "import", source, "--tag", "bad"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(rf"layerstore: {archive}: .*byte \d+: .*{message}.*\n", err), err
    assert image_ids(root) == []
    assert litter(root) == []
    assert sorted(os.listdir(tmp_path)) == sorted({*before, "store"})


@pytest.mark.parametrize("compress", ["gzip", "zstd"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_compressed_tars_cut_short(
    tmp_path: Path, root: Path, capfd: pytest.CaptureFixture[str], compress: str, share: float
) -> None:
    packed = (gzipped if compress == "gzip" else zstandard_of)(BASE)
    path = tmp_path / "cut.tar"
    path.write_bytes(packed[: int(len(packed) * share)])
    assert run(["--root", str(root), "import", f"tar:{path}"]) == 1
    err = capfd.readouterr().err
    assert re.fullmatch(
        rf"layerstore: {path}: byte \d+: the {compress} data is cut short\n", err
    ), err
    assert litter(root) == []


def test_whiteouts_of_nothing_are_marks_like_others(tmp_path: Path, root: Path) -> None:
    layers = [tar_of([Item("there")]), tar_of([Item(".wh.absent"), Item("new/.wh..wh..opq")])]
    image = imported(root, layout_of(layers).archive(tmp_path / "a.tar"))
    with Index(image.layer_indexes[1]) as layer, Index(image.image_index) as merged:
        absent = layer.lookup(layer.root_nid, b"absent")
        assert absent is not None
        assert stat.S_ISCHR(layer.stat(absent).mode)
        assert layer.stat(absent).rdev == 0
        assert [name for name, *_ in merged.entries(merged.root_nid)] == [b"new", b"there"]


def test_duplicates_are_what_came_last(tmp_path: Path, root: Path) -> None:
    items = [Item("a", b"first"), Item("b"), symlink("a", "b"), Item("a", b"last one")]
    image = imported(root, layout_of([tar_of(items)]).archive(tmp_path / "a.tar"))
    with Index(image.image_index) as merged:
        names = [name for name, *_ in merged.entries(merged.root_nid)]
        assert names == [b"a", b"b"]
        found = merged.lookup(merged.root_nid, b"a")
        assert found is not None
        assert merged.stat(found).size == len(b"last one")


def test_a_device_without_privilege(tmp_path: Path) -> None:
    """A device is an entry of the index: none is made, so importing one needs nobody's leave."""
    tmp_path.chmod(0o755)
    items = [Item("null", None, tarfile.CHRTYPE, device=(1, 3)), Item("file", b"F" * 5000)]
    place = tmp_path / "place"
    place.mkdir(mode=0o777)
    place.chmod(0o777)
    source = layout_of([tar_of(items)]).archive(place / "a.tar")
    for directory in [tmp_path, *tmp_path.parents]:
        if directory.owner() == Path.home().owner() and directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o011)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            imported(place / "store", source)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    with Store.open(str(place / "store")) as store:
        (image,) = store.images()
        with Index(image.image_index) as merged:
            nid = merged.lookup(merged.root_nid, b"null")
            assert nid is not None
            assert merged.stat(nid).rdev == os.makedev(1, 3)
    assert not [path for path in place.rglob("*") if path.is_char_device()]
