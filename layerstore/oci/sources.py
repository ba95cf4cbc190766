"""Where an image comes from, spelled as skopeo spells it (containers-transports(5)).

    oci-archive:PATH[:TAG]       oci:DIR[:TAG]       docker-archive:PATH[:NAME:TAG | :@N]
    tar:PATH    one layer from a tar, `-` for standard input
    dir:PATH    one layer from a directory tree, or an image as skopeo's own dir: writes it

A plain PATH is looked at. Archives may be compressed with gzip or zstd.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from typing import BinaryIO, cast

from layerstore.errors import SourceInvalid, show
from layerstore.oci.compression import decompress, is_compressed
from layerstore.oci.docker import docker_image
from layerstore.oci.files import ArchiveFiles, DirectoryFiles, kind_of_archive
from layerstore.oci.image import ImageSource, LayerSource, Layout
from layerstore.oci.limits import NO_LIMITS, Limits
from layerstore.oci.tree_tar import TreeTar

SCHEMES = ("oci-archive", "oci", "docker-archive", "tar", "dir")
_KNOWN_ELSEWHERE = {
    "docker": "docker://[HOST[:PORT]/]REPOSITORY[:TAG] names an image in a registry",
    "docker-daemon": "save it first: docker save -o PATH NAME, then docker-archive:PATH",
    "containers-storage": "save it first: podman save --format oci-archive -o PATH NAME",
}


@contextlib.contextmanager
def open_source(spec: str, scratch: bytes, limits: Limits = NO_LIMITS) -> Iterator[ImageSource]:
    """The image that `spec` names, to be read while the context lasts.

    Args:
        spec: see the module's docstring.
        scratch: a directory for the plain copy of a compressed archive.
        limits: for that copy; only the ratio counts, as several layers may be in it.

    Raises:
        SourceInvalid: an unknown scheme, nothing there, not what it should be.
    """
    scheme, path, reference = parse_spec(spec)
    try:
        with contextlib.ExitStack() as stack:
            yield _open(stack, scheme, path, reference, scratch, limits)
    except (FileNotFoundError, NotADirectoryError, PermissionError, IsADirectoryError) as error:
        if error.filename is None:
            raise
        raise SourceInvalid(f"{show(error.filename)}: {error.strerror}") from None


def parse_spec(spec: str) -> tuple[str, bytes, str | None]:
    """Split a source into scheme, path and the reference within.

    Raises:
        SourceInvalid: an unknown scheme, or nothing after it.
    """
    scheme, colon, rest = spec.partition(":")
    if not colon or "/" in scheme or (scheme not in SCHEMES and os.path.lexists(spec)):
        if not os.path.lexists(spec):
            raise SourceInvalid(
                f"{show(spec)}: there is no such file, and no scheme before it; sources are"
                f" {', '.join(name + ':PATH' for name in SCHEMES)}"
            )
        return _detect(os.fsencode(spec)), os.fsencode(spec), None
    if scheme in _KNOWN_ELSEWHERE:
        raise SourceInvalid(
            f"{show(spec)}: {scheme}: is not read directly; {_KNOWN_ELSEWHERE[scheme].format(spec)}"
        )
    if scheme not in SCHEMES:
        near = difflib.get_close_matches(scheme, SCHEMES, 1)
        hint = f"did you mean {near[0]}:?" if near else f"known are {', '.join(SCHEMES)}"
        raise SourceInvalid(f"{show(spec)}: the scheme {show(scheme)}: is not known; {hint}")
    if not rest:
        raise SourceInvalid(f"{spec}: a path is missing after {scheme}:")
    if scheme in ("tar", "dir"):
        return scheme, os.fsencode(rest), None
    # As skopeo does: the first colon ends the path.
    path, colon, reference = rest.partition(":")
    if colon and not os.path.lexists(path) and os.path.lexists(rest):
        path, reference = rest, ""
    return scheme, os.fsencode(path), reference or None


def _detect(path: bytes) -> str:
    """The scheme of a path that was given without one."""
    if os.path.isdir(path):
        return "oci" if os.path.exists(os.path.join(path, b"oci-layout")) else "dir"
    try:
        with open(path, "rb") as file:
            if is_compressed(file.read(16)):
                return "tar"
            return kind_of_archive(file, show(path))
    except (OSError, SourceInvalid):
        return "tar"  # opening it says what is wrong


def _open(
    stack: contextlib.ExitStack,
    scheme: str,
    path: bytes,
    reference: str | None,
    scratch: bytes,
    limits: Limits,
) -> ImageSource:
    if scheme == "oci":
        return Layout(DirectoryFiles(_directory(path))).image(reference)
    if scheme == "dir":
        return _open_directory(path)
    if scheme == "tar":
        return _open_tar(path)
    file = stack.enter_context(_plain_archive(path, scratch, limits))
    archive = stack.enter_context(contextlib.closing(ArchiveFiles(file, show(path))))
    if scheme == "oci-archive":
        return Layout(archive).image(reference)
    return docker_image(archive, reference)


def _directory(path: bytes) -> bytes:
    if not stat.S_ISDIR(os.stat(path).st_mode):
        raise SourceInvalid(f"{show(path)}: is not a directory")
    return path


def _open_directory(path: bytes) -> ImageSource:
    version = os.path.join(_directory(path), b"version")
    try:
        with open(version, "rb") as file:
            is_skopeo = file.read(64).startswith(b"Directory Transport Version: 1.")
    except OSError:
        is_skopeo = False
    if is_skopeo and os.path.isfile(os.path.join(path, b"manifest.json")):
        return Layout(DirectoryFiles(path), blobs="").bare_image()
    label = show(path)
    layer = LayerSource(label, lambda: cast(BinaryIO, TreeTar(path)), needs_end=True)
    return ImageSource(label, b"", [layer])


def _open_tar(path: bytes) -> ImageSource:
    label = "standard input" if path == b"-" else show(path)

    def open_layer() -> BinaryIO:
        if path == b"-":
            return open(os.dup(sys.stdin.fileno()), "rb", buffering=0)
        return open(path, "rb", buffering=0)

    if path != b"-":
        if stat.S_ISDIR(os.stat(path).st_mode):
            raise SourceInvalid(f"{label}: is a directory; dir:{label} imports one")
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    return ImageSource(label, b"", [LayerSource(label, open_layer, needs_end=True)])


@contextlib.contextmanager
def _plain_archive(path: bytes, scratch: bytes, limits: Limits) -> Iterator[BinaryIO]:
    """The archive itself, or a plain copy of a compressed one: layers are found by their place."""
    if stat.S_ISDIR(os.stat(path).st_mode):
        raise SourceInvalid(f"{show(path)}: is a directory, not an archive; oci: reads a layout")
    with open(path, "rb") as file:
        compressed = is_compressed(file.read(16))
        file.seek(0)
        if not compressed:
            yield file
            return
        with tempfile.TemporaryFile(dir=scratch) as copy:
            for chunk in decompress(file, show(path)):
                copy.write(chunk)
                limits.check_ratio(copy.tell(), file.tell(), show(path))
            copy.flush()
            yield cast(BinaryIO, copy)
