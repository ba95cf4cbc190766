"""Mounting costs the same whatever the number of layers: nothing of a layer is opened or read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from layerstore.store import Store
from overlayfs_py import mount
from overlayfs_py.options import parse_mount_options
from tests.layerstore.archives import Item, layout_of, tar_of

DEPTHS = (1, 30, 400)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("depth")
    files = [Item(f"f{number}", b"%d" % number * 3000) for number in range(400)]
    with Store.open(str(place / "store"), create=True) as store:
        for depth in DEPTHS:
            layers = [tar_of(files[number::depth]) for number in range(depth)]
            archive = layout_of(layers, compress="").archive(place / f"{depth}.tar")
            store.import_image(archive, f"depth{depth}")
    return place / "store"


def opened(root: Path, depth: int) -> list[str]:
    """The kinds of files below the store that building a mount's union opens, in order."""
    found: list[str] = []
    listening = True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if listening and event == "open" and isinstance(arguments[0], bytes | str):
            path = os.fsdecode(arguments[0])
            if path.startswith(str(root)):
                found.append(os.path.relpath(path, root).partition("/")[0])

    options = parse_mount_options([], image=f"depth{depth}", store_root=str(root))
    sys.addaudithook(hook)
    overlay = mount.build(options)
    listening = False
    overlay.close()
    return found


def test_building_a_mount_opens_one_index(root: Path) -> None:
    one, many, most = (opened(root, depth) for depth in DEPTHS)
    assert one == many == most
    assert one.count("images") == 1
    assert "layers" not in one


def test_the_image_indexes_are_of_one_size(root: Path) -> None:
    """The same 400 files: the number of layers they came in leaves no trace."""
    with Store.open(str(root)) as store:
        images = [store.resolve(f"depth{depth}") for depth in DEPTHS]
    contents = [Path(os.fsdecode(image.image_index)).read_bytes() for image in images]
    assert contents[0] == contents[1] == contents[2]
    assert [len(image.layers) for image in images] == list(DEPTHS)


def test_more_layers_than_descriptors(tmp_path: Path) -> None:
    """A process may have 1,024 of them, in some containers 256; an index that is open takes two."""
    depth = 700
    layers = [
        tar_of([Item(f"d/f{number}", b"%d" % number * 300), Item(f"d/.wh.f{number - 1}")])
        for number in range(depth)
    ]
    archive = layout_of(layers, compress="").archive(tmp_path / "image.tar")

    def store(*words: str) -> None:
        command = ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh", sys.executable, "-m", "layerstore"]
        command += ["--root", str(tmp_path / "store"), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")

    store("import", archive, "--tag", "deep")
    store("fsck")
    store("export", "deep", f"oci-archive:{tmp_path}/out.tar")
    store("export", "deep", f"docker-archive:{tmp_path}/docker.tar")
    store("checkout", "deep", str(tmp_path / "tree"))
    store("diff", "deep", "deep")
    assert os.listdir(tmp_path / "tree" / "d") == [f"f{depth - 1}"]
    options = parse_mount_options([], image="deep", store_root=str(tmp_path / "store"))
    overlay = mount.build(options)
    overlay.close()
    store("rm", "deep")
    with Store.open(str(tmp_path / "store")) as opened_store:
        assert list(opened_store.objects()) == []
