"""Debian, by mmdebstrap and umoci; no root needed."""

from __future__ import annotations

import contextlib
import io
import subprocess
import tarfile
import time
from pathlib import Path

from image_recipes.cache import cached, register
from image_recipes.programs import Failed, run

SUITE = "bookworm"
FALLBACK_MIRROR = "http://deb.debian.org/debian"


def debian(place: Path, made: Path) -> None:
    """Debian minbase, one layer, made by mmdebstrap and umoci."""
    base = bootstrap(place)
    layout = f"{place}/layout"
    run(["umoci", "init", "--layout", layout])
    run(["umoci", "new", "--image", f"{layout}:latest"])
    add_layer(f"{layout}:latest", base, "compressing the base layer")
    archive(Path(layout), made)


def debian_hello(place: Path, made: Path) -> None:
    """debian and a second layer: the package hello, a changed file, a removed directory."""
    layout = place / "layout"
    layout.mkdir()
    with tarfile.open(cached("debian")) as base:
        base.extractall(layout)
    package = place / "package.tar"
    tree = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", _download("hello", place)], capture_output=True, check=True
    )
    with (
        tarfile.open(fileobj=io.BytesIO(tree.stdout)) as content,
        tarfile.open(package, "w", format=tarfile.PAX_FORMAT) as layer,
    ):
        for member in content:
            layer.addfile(member, content.extractfile(member) if member.isreg() else None)
        for name, text in (
            ("./etc/motd", b"Debian, with one layer on top.\n"),
            ("./usr/share/doc/.wh.apt", b""),
        ):
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(text), 0o644, int(time.time())
            layer.addfile(member, io.BytesIO(text))
    add_layer(f"{layout}:latest", package, "adding the layer with hello")
    archive(layout, made)


def bootstrap(place: Path) -> Path:
    base = place / "base.tar"
    settings = [f"--aptopt={line}" for line in proxy_settings()]
    run(
        ["mmdebstrap", "--variant=minbase", "--quiet", *settings, SUITE, base, mirror()],
        f"downloading and unpacking Debian {SUITE} minbase from {mirror()}",
    )
    return base


def mirror() -> str:
    """Where this machine's apt takes the suite from."""
    with contextlib.suppress(Failed):
        uris = run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI)", f"Codename: {SUITE}"]
        ).split()
        if uris:
            return uris[0].rstrip("/")
    return FALLBACK_MIRROR


def proxy_settings() -> list[str]:
    """apt's own, since the new root does not read this machine's configuration."""
    with contextlib.suppress(Failed):
        lines = run(["apt-config", "dump"]).splitlines()
        return [line for line in lines if line.startswith(("Acquire::http", "Acquire::Check-"))]
    return []


def _download(package: str, place: Path) -> Path:
    lists = place / "lists"
    (lists / "partial").mkdir(parents=True)
    # apt's state of this machine may be empty, and is not ours to fill.
    source = place / "sources.list"
    source.write_text(f"deb {mirror()} {SUITE} main\n")
    state = [
        f"-oDir::State::lists={lists}",
        f"-oDir::Etc::sourcelist={source}",
        "-oDir::Etc::sourceparts=-",
        f"-oDir::Cache={place}",
        "-oAPT::Sandbox::User=",
        "-oAPT::Update::Post-Invoke-Success=",
        "-oAPT::Update::Post-Invoke=",
        "-oAcquire::Languages=none",
    ]
    run(["apt-get", *state, "update"], f"looking for the package {package}")
    run(["sh", "-c", 'cd "$0" && exec apt-get "$@"', place, *state, "download", package])
    return next(place.glob(f"{package}_*.deb"))


def add_layer(image: str, layer: Path, what: str) -> None:
    run(["umoci", "raw", "add-layer", "--image", image, layer], what)
    # umoci keeps the blobs that the change has replaced.
    run(["umoci", "gc", "--layout", image.rpartition(":")[0]])


def archive(layout: Path, made: Path) -> None:
    with tarfile.open(made, "w") as whole:
        for path in sorted(layout.iterdir()):
            whole.add(path, path.name)


register("debian", debian, bootstrap)
register("debian-hello", debian_hello, debian, bootstrap)
