"""An import takes so much and no more, whatever a layer would unpack to."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from layerstore.cli import run
from layerstore.errors import SourceInvalid, StoreError
from layerstore.oci import limits as module
from layerstore.oci.limits import DEFAULT_LIMITS, NO_LIMITS, Limits
from layerstore.store import Store
from tests.layerstore.archives import Item, docker_archive, layout_of, tar_of, zstandard_of
from tests.layerstore.stores import BASE, image_ids, litter
from tests.layerstore.test_tar import pax

ZEROS = tar_of([Item("zeros", bytes(40 << 20))])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ratio counts from 1 MiB on."""
    monkeypatch.setattr(module, "_RATIO_FREE", 1 << 20)


def refused(root: Path, source: str, message: str, limits: Limits | None = None) -> None:
    with Store.open(str(root), create=True) as store:
        with pytest.raises(StoreError, match=message) as error:
            store.import_image(source, limits=limits)
        assert "\n" not in str(error.value)
        assert store.images() == []
    assert litter(root) == []


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("compress", ["gzip", "zstd"])
def test_a_bomb(root: Path, tmp_path: Path, compress: str) -> None:
    source = layout_of([ZEROS], compress=compress).archive(tmp_path / "bomb.tar")
    refused(root, source, r"layer 1 of 1 .*: a decompression bomb\? --max-ratio allows more")
    with Store.open(str(root)) as store:
        store.import_image(source, limits=Limits(ratio=0))


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("pack", [gzip.compress, zstandard_of])
def test_a_bomb_of_an_archive(root: Path, tmp_path: Path, pack: type[bytes]) -> None:
    docker_archive(tmp_path / "plain.tar", [ZEROS])
    (tmp_path / "packed").write_bytes(pack((tmp_path / "plain.tar").read_bytes()))
    refused(root, f"docker-archive:{tmp_path}/packed", "packed: byte .*: a decompression bomb")


@pytest.mark.usefixtures("soon")
def test_plain_layers_are_no_bombs(root: Path, tmp_path: Path) -> None:
    with Store.open(str(root), create=True) as store:
        store.import_image(layout_of([ZEROS], compress="").archive(tmp_path / "plain.tar"))


def test_the_size_of_a_layer(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = layout_of([ZEROS]).archive(tmp_path / "a.tar")
    command = ["--root", str(root), "import", source, "--max-layer-size"]
    assert run([*command, "39M"]) == 1
    said = capfd.readouterr().err
    assert "more than 40894464 bytes come out of it" in said
    assert said.count("\n") == 1
    assert image_ids(root) == []
    assert run([*command, "1g"]) == 0
    assert run([*command, "0"]) == 0


def test_the_entries_of_a_layer(root: Path, tmp_path: Path) -> None:
    source = layout_of([BASE]).archive(tmp_path / "a.tar")
    refused(root, source, "more than 6 entries; --max-entries", Limits(entries=6))
    assert run(["--root", str(root), "import", source, "--max-entries", "7"]) == 0


def test_holes_without_end(root: Path, tmp_path: Path) -> None:
    """A name of a file of exabytes costs an attacker one block, and whoever hashes it years."""
    sizes = {b"GNU.sparse.map": b"0,3", b"GNU.sparse.size": b"%d" % (1 << 62)}
    source = layout_of([pax(sizes, data=b"abc")]).archive(tmp_path / "a.tar")
    refused(root, source, "byte 0: f: with it the layer has sparse files of 46116860")
    many = b"".join(
        pax({**sizes, b"GNU.sparse.size": b"%d" % (600 << 10)}, b"f%d" % number, b"abc")[:-1024]
        for number in range(9)
    )
    source = layout_of([many + bytes(1024)]).archive(tmp_path / "b.tar")
    refused(root, source, "f8: .* 5529600 bytes", Limits(layer_bytes=5 << 20))


@pytest.mark.parametrize("words", [["-1"], ["x"], ["1P"], ["G"], [""], ["1.5G"], ["²"]])
def test_sizes_that_are_none(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["import", "tar:-", "--max-layer-size", *words])
    assert "--max-layer-size" in capfd.readouterr().err


def test_the_rules() -> None:
    NO_LIMITS.check_plain(1 << 60, 1, "x")
    NO_LIMITS.check_entries(1 << 40, "x")
    DEFAULT_LIMITS.check_plain(1 << 30, 1, "x")
    DEFAULT_LIMITS.check_plain(200 << 24, 1 << 24, "x")
    for plain, packed in (
        ((1 << 30) + 1, 1),
        ((200 << 24) + 1, 1 << 24),
        ((64 << 30) + 1, 1 << 40),
    ):
        with pytest.raises(SourceInvalid):
            DEFAULT_LIMITS.check_plain(plain, packed, "x")
