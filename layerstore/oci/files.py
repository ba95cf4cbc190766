"""The files an image comes in: a directory, or an archive that is read in place.

Both answer to the names OCI layouts and docker archives use, such as `blobs/sha256/...`.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO, Protocol

from layerstore.errors import SourceInvalid, show
from layerstore.oci.tar import TarEntry, TarReader

_NO_IMAGE_AFTER = 4096
"""Members none of which belongs into an image: what follows is not looked at."""
_IMAGE_NAMES = ("oci-layout", "repositories")
_IMAGE_SUFFIXES = (".json", ".tar", "/VERSION")

JSON_MAX = 4 << 20
"""As large as registries and skopeo allow a manifest or a config to be, in bytes."""


class Files(Protocol):
    """Named files."""

    label: str
    """What they are called in messages."""

    def open(self, name: str) -> BinaryIO | None:
        """The content of a file, None if there is no such file."""
        ...


class DirectoryFiles:
    """The files below a directory.

    Args:
        path: the directory.
    """

    def __init__(self, path: bytes) -> None:
        self.label = show(path)
        self._path = path

    def open(self, name: str) -> BinaryIO | None:
        """As in `Files`. Names that lead upwards or elsewhere are no files."""
        parts = name.split("/")
        if name.startswith("/") or ".." in parts or "\0" in name:
            return None
        path = os.path.join(self._path, os.fsencode(name))
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            return None
        return open(fd, "rb", buffering=0)


class ArchiveFiles:
    """The files in an uncompressed tar archive, which stay where they are.

    Args:
        file: the archive.
        label: what it is called in messages.

    Raises:
        SourceInvalid: it is no tar archive, or a damaged one.
    """

    def __init__(self, file: BinaryIO, label: str) -> None:
        self.label = label
        self._fd = os.dup(file.fileno())
        self._places: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        try:
            self._scan()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the archive; files opened from it stay open."""
        os.close(self._fd)

    def _scan(self) -> None:
        for name, entry, data_offset in _members(self._fd, self.label):
            if entry.hard_link:
                self._links[name] = os.fsdecode(os.path.normpath(entry.link.lstrip(b"/")))
            elif entry.kind == stat.S_IFLNK:
                target = os.path.join(os.path.dirname(entry.name), entry.link)
                self._links[name] = os.fsdecode(os.path.normpath(target.lstrip(b"/")))
            elif entry.kind == stat.S_IFREG and entry.segments is None:
                self._places[name] = (data_offset, entry.size)
                self._links.pop(name, None)

    def open(self, name: str) -> BinaryIO | None:
        """As in `Files`."""
        name = os.path.normpath(name)
        for _ in range(8):  # old archives keep a layer once and link to it
            if name not in self._links:
                break
            name = self._links[name]
        place = self._places.get(name)
        if place is None:
            return None
        return io.BufferedReader(_Range(os.dup(self._fd), *place), 1 << 16)


def kind_of_archive(file: BinaryIO, label: str) -> str:
    """What an uncompressed tar archive holds: "oci-archive", "docker-archive", or, as it has not what an
    image needs, just "tar". In constant memory.

    Raises:
        SourceInvalid: it is no tar archive, or a damaged one.
    """
    found = set()
    could_be_image = False
    for count, (name, entry, _) in enumerate(_members(file.fileno(), label), 1):
        if name in ("oci-layout", "manifest.json") and entry.kind != stat.S_IFDIR:
            found.add(name)
        could_be_image = could_be_image or name.endswith(_IMAGE_SUFFIXES) or name in _IMAGE_NAMES
        could_be_image = could_be_image or name.startswith("blobs/")
        if count >= _NO_IMAGE_AFTER and not could_be_image:
            break
    if "oci-layout" in found:
        return "oci-archive"
    return "docker-archive" if found else "tar"


def _members(fd: int, label: str) -> Iterator[tuple[str, TarEntry, int]]:
    """The members of an archive: name, entry, and where its content starts."""
    length = os.fstat(fd).st_size
    with _Range(os.dup(fd), 0, length) as source:
        reader = TarReader(source, label, needs_end=False)
        for entry in reader:
            if reader.data_offset + entry.stored > length:
                raise SourceInvalid(
                    f"{label}: byte {entry.offset}: {show(entry.name)}: the archive ends before"
                    " the file does: it was cut short"
                )
            name = os.fsdecode(os.path.normpath(entry.name.lstrip(b"/")))
            yield name, entry, reader.data_offset


class _Range(io.RawIOBase):
    """Part of a file, read without moving the descriptor's position; owns the descriptor."""

    def __init__(self, fd: int, start: int, length: int) -> None:
        super().__init__()
        self._fd = fd
        self._position = start
        self._end = start + length

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        left = max(0, self._end - self._position)
        data = os.pread(self._fd, left if size < 0 else min(size, left), self._position)
        self._position += len(data)
        return data

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def skip(self, size: int, /) -> None:
        self._position += size

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


def read_limited(files: Files, name: str, what: str) -> bytes:
    """The whole content of a small file.

    Raises:
        SourceInvalid: it is missing or larger than `JSON_MAX`.
    """
    file = files.open(name)
    if file is None:
        raise SourceInvalid(f"{files.label}: {what} is missing ({name})")
    with file:
        data = b""
        while piece := file.read(JSON_MAX + 1 - len(data)):
            data += piece
    if len(data) > JSON_MAX:
        raise SourceInvalid(f"{files.label}: {what} is larger than {JSON_MAX} bytes ({name})")
    return data
