"""Export: what came in goes out, in every form; a failure leaves nothing behind."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layerstore.cli import run
from layerstore.errors import ImageUnknown, ObjectCorrupt, SplitMissing, StoreError
from layerstore.export.layers import Compression
from layerstore.store import Image, Store
from tests.layerstore.archives import (
    Item,
    Layout,
    digest_of,
    docker_archive,
    folder,
    hard_link,
    layout_of,
    symlink,
    tar_of,
)
from tests.layerstore.stores import BASE, TOP, imported
from tests.layerstore.test_import import check_image

PLAIN = tar_of([folder("d"), Item("d/f", b"f" * 4000), hard_link("g", "d/f"), symlink("s", "d")])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def export(root: Path, destination: str, **more: Any) -> str | None:
    """Export the image called x; returns the digest of the manifest."""
    with Store.open(str(root)) as store:
        return store.export_image("x", destination, **more).manifest


def take(root: Path, layout: Layout | str, tmp_path: Path, **more: Any) -> Image:
    source = layout if isinstance(layout, str) else layout.archive(tmp_path / "source.tar")
    with Store.open(str(root), create=True) as store:
        return store.import_image(source, "x", **more)


def manifest_digest(layout: Layout) -> str:
    digest: str = layout.index["manifests"][0]["digest"]
    return digest


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# --- layouts

DESTINATIONS = {
    "oci": "oci:{}/out",
    "oci-archive": "oci-archive:{}/out",
    "docker-archive": "docker-archive:{}/out",
}


@pytest.mark.parametrize("form", DESTINATIONS)
@pytest.mark.parametrize("method", [None, "gzip", "zstd", "none"])
def test_round_trip(root: Path, tmp_path: Path, form: str, method: str | None) -> None:
    first = take(root, layout_of([BASE, TOP]), tmp_path)
    destination = DESTINATIONS[form].format(tmp_path)
    export(root, destination, compression=method and Compression(method))
    second = imported(tmp_path / "second", destination)
    assert second.id == first.id
    check_image(second, tmp_path / "second")
    assert second.tags == ["x:latest"]
    assert names_in(tmp_path) == {"store", "second", "source.tar", "out"}


@pytest.mark.parametrize("form", ["oci", "oci-archive"])
@pytest.mark.parametrize("compress", ["gzip", "zstd", ""])
def test_the_manifest_survives(root: Path, tmp_path: Path, form: str, compress: str) -> None:
    layout = layout_of([BASE, TOP, BASE], compress=compress)
    take(root, layout, tmp_path, keep_blobs=True)
    destination = DESTINATIONS[form].format(tmp_path)
    assert export(root, destination) == manifest_digest(layout)
    assert imported(tmp_path / "second", destination).manifest in layout.blobs.values()


def test_the_manifest_of_plain_layers_survives_without_blobs(root: Path, tmp_path: Path) -> None:
    layout = layout_of([BASE, TOP], compress="")
    take(root, layout, tmp_path)
    assert export(root, f"oci:{tmp_path}/out") == manifest_digest(layout)
    assert export(root, f"oci:{tmp_path}/out:other") == manifest_digest(layout)


@pytest.mark.parametrize("compress", ["gzip", "zstd"])
def test_layers_are_compressed_as_they_were(root: Path, tmp_path: Path, compress: str) -> None:
    layout = layout_of([BASE, TOP], compress=compress)
    take(root, layout, tmp_path)
    digest = export(root, f"oci:{tmp_path}/out")
    assert digest != manifest_digest(layout)
    manifest = blob(tmp_path / "out", digest)
    kind = f"application/vnd.oci.image.layer.v1.tar+{compress}"
    assert [layer["mediaType"] for layer in manifest["layers"]] == [kind] * 2
    assert export(root, f"oci:{tmp_path}/again") == digest  # the same every time


def blob(layout: Path, digest: str | None) -> Any:
    assert digest is not None
    return json.loads((layout / "blobs/sha256" / digest[7:]).read_bytes())


def test_levels(root: Path, tmp_path: Path) -> None:
    data = Path(os.__file__).read_bytes() * 9
    take(root, layout_of([tar_of([Item("f", data)])]), tmp_path)
    sizes = {}
    for method, level in (("gzip", 1), ("gzip", 9), ("zstd", 1), ("zstd", 19), ("none", None)):
        path = tmp_path / f"{method}{level}"
        words = ["--compress-level", str(level)] if level else []
        words = ["--root", str(root), "export", "x", f"tar:{path}", "--compress", method, *words]
        assert run(words) == 0
        sizes[method, level] = path.stat().st_size
    assert sizes["gzip", 9] < sizes["gzip", 1] < sizes["none", None]
    assert sizes["zstd", 19] < sizes["zstd", 1] < sizes["none", None]


def test_docker_types_become_ocis_where_the_manifest_is_another(root: Path, tmp_path: Path) -> None:
    layout = layout_of([BASE])
    manifest = json.loads(layout.blobs[manifest_digest(layout)])
    docker = "application/vnd.docker"
    manifest["mediaType"] = f"{docker}.distribution.manifest.v2+json"
    manifest["config"]["mediaType"] = f"{docker}.container.image.v1+json"
    manifest["layers"][0]["mediaType"] = f"{docker}.image.rootfs.diff.tar.gzip"
    manifest["annotations"] = {"a": "b"}
    layout.index["manifests"] = [layout.add_json(manifest, manifest["mediaType"])]
    take(root, layout, tmp_path)
    made = blob(tmp_path / "out", export(root, f"oci:{tmp_path}/out"))
    assert made["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert made["config"]["digest"] == manifest["config"]["digest"]
    assert made["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    assert made["layers"][0]["mediaType"] == "application/vnd.oci.image.layer.v1.tar+gzip"
    assert made["annotations"] == {"a": "b"}
    # Kept, it goes out as it came, with its own type in the index.
    take(root, layout, tmp_path, keep_blobs=True)
    assert export(root, f"oci:{tmp_path}/kept") == manifest_digest(layout)
    (entry,) = json.loads((tmp_path / "kept/index.json").read_bytes())["manifests"]
    assert entry["mediaType"] == manifest["mediaType"]
    assert (
        imported(tmp_path / "second", f"oci:{tmp_path}/kept").id
        == imported(root, f"oci:{tmp_path}/out").id
    )


def test_an_image_without_a_manifest(root: Path, tmp_path: Path) -> None:
    first = take(root, docker_archive(tmp_path / "source.tar", [BASE, TOP]), tmp_path)
    digest = export(root, f"oci-archive:{tmp_path}/out:t")
    second = imported(tmp_path / "second", f"oci-archive:{tmp_path}/out:t")
    assert second.id == first.id
    assert digest_of(second.manifest) == digest


def test_no_layers_at_all(root: Path, tmp_path: Path) -> None:
    first = take(root, layout_of([]), tmp_path)
    for form, destination in DESTINATIONS.items():
        place = tmp_path / form
        place.mkdir()
        export(root, destination.format(place))
        assert imported(place / "store", destination.format(place)).id == first.id


# --- layouts that have images


def index_of(layout: Path) -> list[tuple[str | None, str]]:
    manifests = json.loads((layout / "index.json").read_bytes())["manifests"]
    key = "org.opencontainers.image.ref.name"
    return [(m.get("annotations", {}).get(key), m["digest"]) for m in manifests]


def test_adding_to_a_layout(root: Path, tmp_path: Path) -> None:
    place = tmp_path / "layout"
    other = layout_of([TOP], name="theirs")
    other.index["annotations"] = {"kept": "yes"}
    other.directory(place)
    (place / "unknown").write_text("stays")
    take(root, layout_of([BASE, TOP], compress=""), tmp_path)
    theirs = ("theirs", manifest_digest(other))
    ours = export(root, f"oci:{place}:one")
    assert ours is not None
    assert index_of(place) == [theirs, ("one", ours)]
    export(root, f"oci:{place}:two")
    assert index_of(place) == [theirs, ("one", ours), ("two", ours)]
    # A tag means one image.
    packed = export(root, f"oci:{place}:one", compression=Compression("zstd"))
    assert packed is not None
    assert index_of(place) == [theirs, ("two", ours), ("one", packed)]
    export(root, f"oci:{place}:theirs")
    assert index_of(place) == [("two", ours), ("one", packed), ("theirs", ours)]
    assert json.loads((place / "index.json").read_bytes())["annotations"] == {"kept": "yes"}
    assert (place / "unknown").read_text() == "stays"
    assert names_in(place) == {"blobs", "index.json", "oci-layout", "unknown"}
    for tag in ("one", "two", "theirs"):
        check_image(imported(tmp_path / tag, f"oci:{place}:{tag}"), tmp_path / tag)


def test_a_directory_that_is_no_layout(root: Path, tmp_path: Path) -> None:
    take(root, layout_of([BASE]), tmp_path)
    place = tmp_path / "place"
    place.mkdir()
    export(root, f"oci:{place}")  # an empty one will do
    (place / "oci-layout").unlink()
    with pytest.raises(StoreError, match="is neither empty nor an OCI image layout"):
        export(root, f"oci:{place}")
    (place / "oci-layout").write_text("{}")
    (place / "index.json").write_text("[]")
    with pytest.raises(StoreError, match=r"index\.json is not a JSON object"):
        export(root, f"oci:{place}")
    assert names_in(place) == {"blobs", "index.json", "oci-layout"}


# --- names


def test_names_in_archives(root: Path, tmp_path: Path) -> None:
    take(root, layout_of([BASE]), tmp_path)
    with Store.open(str(root)) as store:
        store.tag("x", "example.org/a/b:2")
        docker = f"docker-archive:{tmp_path}/d"
        store.export_image("x", docker)
        both = ["example.org/a/b:2", "x:latest"]
        assert imported(tmp_path / "1", docker).tags == both
        store.export_image("x", f"docker-archive:{tmp_path}/e:other")
        assert imported(tmp_path / "2", f"docker-archive:{tmp_path}/e").tags == ["other:latest"]
        store.export_image("x", f"oci-archive:{tmp_path}/f")
        assert imported(tmp_path / "3", f"oci-archive:{tmp_path}/f").tags == both[:1]


def test_an_image_without_a_name(root: Path, tmp_path: Path) -> None:
    with Store.open(str(root), create=True) as store:
        image = store.import_image(layout_of([BASE]).archive(tmp_path / "a.tar"))
        for form, destination in DESTINATIONS.items():
            (tmp_path / form).mkdir()
            store.export_image(image.id[7:20], destination.format(tmp_path / form))
            source = destination.format(tmp_path / form)
            assert imported(tmp_path / form / "store", source).tags == []


@pytest.mark.parametrize(
    ("destination", "message"),
    [
        ("file", "destinations are oci-archive:PATH, oci:PATH.*put one before it"),
        ("oci-archve:x", "did you mean oci-archive:"),
        ("docker:x/y", "names an image in a registry"),
        ("containers-storage:x", "podman load"),
        ("tar:", "a path is missing"),
        ("oci::tag", "a path is missing"),
        ("oci:x:a b", "'a b' is no tag"),
        ("oci:x:-", "is no tag"),
        ("docker-archive:x:A:1", "is no name for an image"),
        ("oci:-", "is a directory, not a stream"),
        ("dir:-", "is a directory, not a stream"),
        ("oci-archive:/nowhere/at/all", "No such file"),
        ("oci:/nowhere/at/all", "No such file"),
        ("dir:/nowhere/at/all", "No such file"),
        ("tar:/", "is a directory, not a file"),
    ],
)
def test_bad_destinations(
    root: Path, tmp_path: Path, destination: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    take(root, layout_of([BASE]), tmp_path)
    assert run(["--root", str(root), "export", "x", destination]) == 1
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(said)
    assert not os.path.exists("/nowhere")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--compress", "gzip", "--compress-level", "0"], "gzip has levels 1 to 9, not 0"),
        (["--compress", "zstd", "--compress-level", "23"], "zstd has levels 1 to 22, not 23"),
        (["--compress", "none", "--compress-level", "1"], "none has no levels, not 1"),
        (["--compress-level", "3"], "needs --compress"),
    ],
)
def test_bad_levels(
    root: Path, tmp_path: Path, words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    take(root, layout_of([BASE]), tmp_path)
    assert run(["--root", str(root), "export", "x", f"tar:{tmp_path}/t", *words]) == 1
    assert message in capfd.readouterr().err
    assert not (tmp_path / "t").exists()


def test_what_is_there_stays(root: Path, tmp_path: Path) -> None:
    take(root, layout_of([BASE]), tmp_path)
    path = tmp_path / "out"
    for scheme in ("oci-archive", "docker-archive", "tar"):
        path.write_text("precious")
        with pytest.raises(StoreError, match="is there already: --force replaces it"):
            export(root, f"{scheme}:{path}")
        assert path.read_text() == "precious"
        export(root, f"{scheme}:{path}", force=True)
        assert tarfile.is_tarfile(path)
        path.write_text("")
        export(root, f"{scheme}:{path}")
        assert tarfile.is_tarfile(path)
    with pytest.raises(StoreError, match="no empty directory"):
        export(root, f"dir:{path}")
    with pytest.raises(StoreError, match="no empty directory"):
        export(root, f"oci:{path}", force=True)
    (tmp_path / "link").symlink_to("out")
    export(root, f"tar:{tmp_path}/link", force=True)
    assert names_in(tmp_path) == {"store", "source.tar", "out", "link"}
    with pytest.raises(ImageUnknown), Store.open(str(root)) as store:
        store.export_image("y", f"tar:{tmp_path}/y")


# --- streams


@pytest.mark.parametrize("scheme", ["oci-archive", "docker-archive", "tar"])
@pytest.mark.parametrize("method", [None, "gzip", "zstd"])
def test_standard_output(root: Path, tmp_path: Path, scheme: str, method: str | None) -> None:
    first = take(root, layout_of([BASE, TOP]), tmp_path)
    command = [
        sys.executable,
        "-m",
        "layerstore",
        "--root",
        str(root),
        "export",
        "x",
        f"{scheme}:-",
    ]
    with open(tmp_path / "out", "wb") as file:
        subprocess.run(
            [*command, *(["--compress", method] if method else [])], stdout=file, check=True
        )
    second = imported(tmp_path / "second", f"{scheme}:{tmp_path}/out")
    if scheme != "tar":
        assert second.id == first.id


def test_no_archives_on_a_terminal(root: Path, tmp_path: Path) -> None:
    take(root, layout_of([BASE]), tmp_path)
    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "layerstore", "--root", str(root), "export", "x", "tar:-"]
    done = subprocess.run(command, stdout=terminal, stderr=subprocess.PIPE, check=False)
    os.close(terminal)
    os.close(main)
    assert done.returncode == 1
    assert b"is a terminal" in done.stderr


def test_a_reader_that_goes_away(root: Path, tmp_path: Path) -> None:
    take(root, layout_of([tar_of([Item("f", os.urandom(1 << 20))])]), tmp_path)
    done = subprocess.run(
        f"{sys.executable} -m layerstore --root {root} export x tar:- | head -c 1 > /dev/null",
        shell=True,
        capture_output=True,
        check=False,
    )
    assert done.stderr == b""


def test_a_fifo(root: Path, tmp_path: Path) -> None:
    take(root, layout_of([PLAIN]), tmp_path)
    os.mkfifo(tmp_path / "fifo")
    command = [sys.executable, "-m", "layerstore", "--root", str(root), "export", "x"]
    with subprocess.Popen([*command, f"tar:{tmp_path}/fifo"], stdout=subprocess.PIPE) as process:
        assert (tmp_path / "fifo").read_bytes() == PLAIN
        assert process.communicate(timeout=30)[0]
    assert stat.S_ISFIFO(os.stat(tmp_path / "fifo").st_mode)


# --- damage


def spoilt(root: Path) -> str:
    """Damage the object of TOP's etc/new; returns its digest."""
    digest = digest_of(b"N" * 6000)
    path = root / "objects" / digest[7:9] / digest[9:]
    path.chmod(0o644)
    path.write_bytes(b"M" * 6000)
    return digest


@pytest.mark.parametrize("scheme", ["oci", "oci-archive", "docker-archive", "tar", "dir"])
def test_a_damaged_object_is_not_exported(root: Path, tmp_path: Path, scheme: str) -> None:
    take(root, layout_of([BASE, TOP]), tmp_path)
    digest = spoilt(root)
    with pytest.raises(ObjectCorrupt, match=digest):
        export(root, f"{scheme}:{tmp_path}/out")
    assert names_in(tmp_path) == {"store", "source.tar"}


def test_a_damaged_object_adds_nothing_to_a_layout(root: Path, tmp_path: Path) -> None:
    take(root, layout_of([BASE, TOP]), tmp_path)
    layout_of([PLAIN]).directory(tmp_path / "layout")
    before = {
        path: path.read_bytes() for path in (tmp_path / "layout").rglob("*") if path.is_file()
    }
    spoilt(root)
    with pytest.raises(ObjectCorrupt):
        export(root, f"oci:{tmp_path}/layout:x")
    after = {path: path.read_bytes() for path in (tmp_path / "layout").rglob("*") if path.is_file()}
    assert after == before


def test_a_missing_split_is_said(root: Path, tmp_path: Path) -> None:
    take(root, layout_of([BASE]), tmp_path)
    for path in (root / "layers").glob("*.tarsplit"):
        path.unlink()
    with pytest.raises(SplitMissing, match="cannot be exported"):
        export(root, f"oci-archive:{tmp_path}/out")
    export(root, f"dir:{tmp_path}/out")  # which needs none


def spoil(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[::-1])


@pytest.mark.parametrize(("how", "said"), [(spoil, "is damaged"), (Path.unlink, "is missing")])
def test_a_damaged_blob_is_not_exported(
    root: Path, tmp_path: Path, how: Callable[[Path], None], said: str
) -> None:
    take(root, layout_of([BASE]), tmp_path, keep_blobs=True)
    (path,) = (root / "blobs").iterdir()
    how(path)
    with pytest.raises(StoreError, match=f"the kept blob {said}: --compress makes a new one"):
        export(root, f"oci-archive:{tmp_path}/out")
    assert not (tmp_path / "out").exists()
    export(root, f"oci-archive:{tmp_path}/out", compression=Compression("gzip"))


def test_an_image_is_not_removed_while_it_is_exported(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from layerstore.errors import ImageInUse
    from layerstore.export.layers import LayerBlobs

    take(root, layout_of([BASE, TOP]), tmp_path)
    plain = LayerBlobs.tar
    tried = []

    def tar(self: LayerBlobs, layer: Any) -> Any:
        with Store.open(str(root)) as store, pytest.raises(ImageInUse):
            store.remove("x")
        tried.append(layer)
        return plain(self, layer)

    monkeypatch.setattr(LayerBlobs, "tar", tar)
    export(root, f"docker-archive:{tmp_path}/out")
    assert len(tried) == 2


def test_a_filesystem_without_unnamed_files(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(root, layout_of([BASE]), tmp_path)
    plain = os.open

    def no_unnamed(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), path)
        return plain(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", no_unnamed)
    export(root, f"tar:{tmp_path}/out")
    export(root, f"tar:{tmp_path}/out", force=True)
    assert (tmp_path / "out").stat().st_nlink == 1
    spoil(next(path for path in (root / "layers").glob("*.tarsplit")))
    with pytest.raises(StoreError):
        export(root, f"tar:{tmp_path}/other")
    assert names_in(tmp_path) == {"store", "source.tar", "out"}


def test_json(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = take(root, layout_of([BASE], compress=""), tmp_path)
    assert run(["--root", str(root), "--json", "export", "x", f"oci:{tmp_path}/o"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert said == {"id": image.id, "manifest": digest_of(image.manifest)}
    assert run(["--root", str(root), "export", "x", f"tar:{tmp_path}/t"]) == 0
    assert capfd.readouterr().out == image.id + "\n"
    assert io.BytesIO((tmp_path / "t").read_bytes()).read() == BASE
