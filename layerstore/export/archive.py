"""A tar archive of files, written from front to back: what oci-archive: and docker-archive: are."""

from __future__ import annotations

import contextlib
import hashlib
import stat
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from layerstore.oci import tar_writer

_CHUNK_SIZE = 1 << 20


class Archive:
    """An archive. Its files have no owner and no time, so that the same is the same.

    Args:
        file: where it goes.
        directory: for what has to be made before its size is known; None: a temporary one.
    """

    def __init__(self, file: BinaryIO, directory: bytes | None) -> None:
        self._file = file
        self._directory = directory

    def add(self, name: str, data: bytes) -> None:
        """Add a file that is in memory."""
        self.add_stream(name, len(data), iter([data]))

    def add_stream(self, name: str, size: int, chunks: Iterator[bytes]) -> tuple[str, int]:
        """Add a file of `size` bytes; returns the digest and the size that it turned out to have. If
        that is another one, the archive is no good."""
        member = tar_writer.Member(name.encode(), stat.S_IFREG, 0o644)
        self._file.write(tar_writer.header(member, size))
        found = copy(chunks, self._file)
        self._file.write(bytes(-size % tar_writer.BLOCK))
        return found

    @contextlib.contextmanager
    def made(self, chunks: Iterator[bytes]) -> Iterator[tuple[str, int, Iterator[bytes]]]:
        """Make something whose size is not known; gives its digest, its size, and it again."""
        with tempfile.TemporaryFile(dir=self._directory) as spool:
            digest, size = copy(chunks, spool)
            spool.seek(0)
            yield digest, size, iter(lambda: spool.read(_CHUNK_SIZE), b"")

    def end(self) -> None:
        """Nothing follows."""
        self._file.write(tar_writer.END)


def copy(chunks: Iterator[bytes], file: BinaryIO) -> tuple[str, int]:
    """Write a stream; returns its digest and size."""
    hasher = hashlib.sha256()
    size = 0
    for chunk in chunks:
        hasher.update(chunk)
        file.write(chunk)
        size += len(chunk)
    return "sha256:" + hasher.hexdigest(), size
