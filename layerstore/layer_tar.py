"""`LayerTar`: the plain tar of a layer as a stream, bit for bit what was imported.

    with store.layer_tar(diff_id) as tar:
        shutil.copyfileobj(tar, somewhere)

`Store.layer_tar` makes one. The digest of the whole is compared with the diff id before the last
piece is given out: who has read to the end without an error has the right bytes, and who has not
lacks some. One thread per `LayerTar`; any number of them at once, in memory of some MiB each.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
from collections.abc import Iterator

from layerstore.errors import ObjectCorrupt, ObjectMissing, SplitCorrupt, SplitMissing
from layerstore.objects import Objects
from layerstore.split import Content, SplitReader

CHUNK_SIZE = 1 << 20


class LayerTar(io.RawIOBase):
    """The tar of a layer, read from front to back. Close it, or use it as a context manager.

    While it is open, a collection deletes nothing that it needs.

    Args:
        objects: of the store.
        path: the layer's split.
        diff_id: of the layer.
        size: of the tar in bytes.

    Raises:
        SplitMissing: there is no split.
    """

    _file: io.FileIO | None = None

    def __init__(self, objects: Objects, path: bytes, diff_id: str, size: int) -> None:
        super().__init__()
        self.diff_id = diff_id
        self.size = size
        """Of the tar in bytes."""
        self._objects = objects
        self._path = path
        self._buffer = memoryview(b"")
        self._file = _claim(path)
        self._chunks = self._verified()

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        """As io.RawIOBase has it.

        Raises:
            SplitCorrupt, ObjectMissing, ObjectCorrupt: the tar cannot be rebuilt; what was read so
                far may be wrong, and is not all.
        """
        if not self._buffer:
            self._buffer = memoryview(next(self._chunks, b""))
        count = min(len(buffer), len(self._buffer))
        buffer[:count] = self._buffer[:count]
        self._buffer = self._buffer[count:]
        return count

    def chunks(self) -> Iterator[bytes]:
        """What is left, in pieces of at most 1 MiB; raises as `readinto` does."""
        if self._buffer:
            yield bytes(self._buffer)
            self._buffer = memoryview(b"")
        yield from self._chunks

    def close(self) -> None:
        """Close it; what it needs may be deleted from now on."""
        if self._file is not None:
            self._file.close()
        super().close()

    # --- the stream

    def _verified(self) -> Iterator[bytes]:
        hasher = hashlib.sha256()
        size = 0
        last = b""
        for chunk in self._rebuilt():
            hasher.update(chunk)
            size += len(chunk)
            if last:
                yield last
            last = chunk
        if (f"sha256:{hasher.hexdigest()}", size) != (self.diff_id, self.size):
            raise self._blame()
        yield last

    def _rebuilt(self) -> Iterator[bytes]:
        """The tar, in pieces of about the chunk size: small files are joined."""
        waiting: list[bytes] = []
        count = 0
        assert self._file is not None
        for part in SplitReader(self._file, self._path).records():
            for piece in (part,) if isinstance(part, bytes) else self._content(part):
                if count + len(piece) > CHUNK_SIZE:
                    yield b"".join(waiting)
                    waiting, count = [], 0
                waiting.append(piece)
                count += len(piece)
        yield b"".join(waiting)

    def _content(self, part: Content) -> Iterator[bytes]:
        fd = self._objects.open(part.digest)
        try:
            position, end = part.offset, part.offset + part.length
            while position < end:
                data = os.pread(fd, min(CHUNK_SIZE, end - position), position)
                if not data:
                    raise self._blame()
                yield data
                position += len(data)
        finally:
            os.close(fd)

    def _blame(self) -> ObjectMissing | ObjectCorrupt | SplitCorrupt:
        """Which file it is that spoils the tar."""
        seen: set[str] = set()
        with open(self._path, "rb", buffering=0) as file:
            for part in SplitReader(file, self._path).records():
                if isinstance(part, Content) and part.digest not in seen:
                    seen.add(part.digest)
                    try:
                        self._objects.verify(part.digest)
                    except (ObjectMissing, ObjectCorrupt) as error:
                        return error
        return SplitCorrupt(self._path, 0, f"expected the tar with the digest {self.diff_id}")


def _claim(path: bytes) -> io.FileIO:
    try:
        file = io.FileIO(path, "rb")
    except FileNotFoundError:
        raise SplitMissing(path) from None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        gone = os.fstat(file.fileno()).st_nlink == 0
    except BlockingIOError:
        gone = True
    except OSError:
        gone = False  # a filesystem without locks: nobody can keep it from being removed
    if gone:
        file.close()
        raise SplitMissing(path)
    return file
