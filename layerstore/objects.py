"""Objects: the content of files, each kept once as a plain read-only file named by its SHA-256.

An object is written in a session's directory below the store's tmp/, synced together with many
others, and only then renamed to `objects/ab/cdef...`: what has a name there is complete, also after
a crash. One thread per `Staging`; any number of processes per store. Memory does not grow with the number of
objects.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator

import xxhash

from layerstore.errors import ObjectCorrupt, ObjectMissing
from layerstore.spool import Sorted

CHUNK_SIZE = 1 << 20
QUARANTINE = b"quarantine"
SYNC_ONE_BY_ONE_MAX = 32
"""Up to so many files are synced one by one; syncfs(2), which is one journal commit for thousands,
also waits for what everybody else has written."""

_ZEROS = bytes(CHUNK_SIZE)
_KEY_SIZE = 32
_CHECKSUM_SIZE = 8

Segment = tuple[int, Iterable[bytes]]
"""Where in a file a run of data starts, and the data."""


class Objects:
    """The objects of a store.

    Args:
        directory: where they are.
    """

    def __init__(self, directory: bytes) -> None:
        self.directory = directory

    def path(self, digest: str) -> bytes:
        """Where the object is, or would be."""
        return os.path.join(self.directory, relative_path(digest))

    def has(self, digest: str) -> bool:
        """Whether the store holds the object."""
        return os.path.exists(self.path(digest))

    def open(self, digest: str) -> int:
        """A read-only descriptor of the object.

        Raises:
            ObjectMissing: the store does not hold it.
        """
        try:
            return os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise ObjectMissing(digest) from None

    def verify(self, digest: str) -> None:
        """Compare the object's content with its name.

        Raises:
            ObjectMissing: the store does not hold it.
            ObjectCorrupt: its content has another digest.
        """
        with open(self.open(digest), "rb", buffering=0) as file:
            found = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            raise ObjectCorrupt(digest, found)

    def __iter__(self) -> Iterator[str]:
        for first in sorted(os.listdir(self.directory)):
            for rest in sorted(os.listdir(os.path.join(self.directory, first))):
                yield f"sha256:{os.fsdecode(first + rest)}"

    # --- quarantine: damaged objects, out of everybody's way

    def quarantine_path(self, digest: str) -> bytes:
        """Where a damaged object is kept."""
        place = os.path.join(os.path.dirname(self.directory), QUARANTINE)
        return os.path.join(place, digest[7:].encode())

    def quarantine(self, digest: str) -> None:
        """Take a damaged object out of the store: who asks for it finds it missing, not wrong.

        Imports must be kept out meanwhile, since they take an object that is there for a sound one.
        """
        path = self.quarantine_path(digest)
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.dirname(path), 0o700)
        os.rename(self.path(digest), path)
        sync_files([os.path.dirname(self.path(digest)), os.path.dirname(path)], self.directory)

    def quarantined(self) -> list[str]:
        """The digests of the damaged objects."""
        try:
            names = os.listdir(os.path.join(os.path.dirname(self.directory), QUARANTINE))
        except FileNotFoundError:
            return []
        return [f"sha256:{os.fsdecode(name)}" for name in sorted(names)]

    def remove(self, digest: str) -> int:
        """Delete an object; returns the bytes it had. Its directory stays."""
        path = self.path(digest)
        size = os.stat(path).st_size
        os.unlink(path)
        return size


class Hashers:
    """SHA-256, which names an object, and XXH3, which is quick to compare, of the same bytes."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._xxh3 = xxhash.xxh3_64()

    def update(self, data: bytes) -> None:
        """The next bytes."""
        self._sha256.update(data)
        self._xxh3.update(data)

    def zeros(self, count: int) -> None:
        """The next `count` bytes are zeros."""
        while count > 0:
            piece = min(count, CHUNK_SIZE)
            self.update(_ZEROS if piece == CHUNK_SIZE else _ZEROS[:piece])
            count -= piece

    @property
    def digest(self) -> str:
        """As OCI writes it."""
        return "sha256:" + self._sha256.hexdigest()

    @property
    def checksum(self) -> bytes:
        """XXH3, 64 bits, in its canonical order of bytes."""
        return self._xxh3.digest()


class Staging:
    """Objects on their way into the store.

    Args:
        objects: where they go.
        directory: an empty directory of this session's own, on the same filesystem.
    """

    def __init__(self, objects: Objects, directory: bytes) -> None:
        self.objects = objects
        self.new_bytes = 0
        self._directory = directory
        self._new = self._sorted()
        self._known: set[bytes] = set()  # directories of objects that others brought
        self._mode_is_right: bool | None = None

    def _sorted(self) -> Sorted:
        return Sorted(_KEY_SIZE + _CHECKSUM_SIZE, os.path.dirname(self._directory))

    @property
    def checksums(self) -> Iterator[tuple[bytes, bytes]]:
        """XXH3 (64 bits) of each new object, by the 32 bytes of its digest, in their order; for quick
        scrubs."""
        return ((record[:_KEY_SIZE], record[_KEY_SIZE:]) for record in self._new)

    @property
    def count(self) -> int:
        """Of the new objects."""
        return len(self._new)

    def add_bytes(self, data: bytes) -> str:
        """Add an object whose content is in memory; returns its digest."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        if not self._present(digest):
            path = self._staged(digest)
            try:
                fd = self._create(path)
            except FileExistsError:  # with this content, some entries ago
                return digest
            try:
                _write_all(fd, data)
            except BaseException:
                os.unlink(path)
                raise
            finally:
                os.close(fd)
            self._keep(digest, len(data), xxhash.xxh3_64_digest(data))
        return digest

    def add(self, chunks: Iterable[bytes]) -> str:
        """Add an object piece by piece; returns its digest."""
        return self.add_sparse([(0, chunks)], 0)

    def add_sparse(self, segments: Iterable[Segment], size: int) -> str:
        """Add an object of runs of data with holes between and after them.

        Args:
            segments: in ascending order, not overlapping.
            size: of the whole in bytes; less than where the data ends counts for nothing.

        Returns:
            its digest, which counts the holes as zeros.
        """
        path = os.path.join(self._directory, b"unnamed")
        fd = self._create(path)
        try:
            hasher = Hashers()
            position = length = 0
            for start, chunks in segments:
                hasher.zeros(start - position)
                if start > position:
                    os.lseek(fd, start, os.SEEK_SET)
                    position = start
                for chunk in chunks:
                    hasher.update(chunk)
                    _write_all(fd, chunk)
                    position = length = position + len(chunk)
            if size > position:
                hasher.zeros(size - position)
                position = size
            if position > length:  # GNU tar closes the map with an empty run at the end
                os.ftruncate(fd, position)
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(fd)
        digest = hasher.digest
        if self._present(digest) or self.is_staged(digest):
            os.unlink(path)
        else:
            os.rename(path, self._staged(digest))
            self._keep(digest, position, hasher.checksum)
        return digest

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Forget what was staged within if the context ends with an exception: another attempt follows,
        and what only this one needed would be an object that nothing refers to."""
        before, self._new = self._new, self._sorted()
        try:
            yield
        except BaseException:
            for digest in self._digests():
                path = self._staged(digest)
                self.new_bytes -= os.stat(path).st_size
                os.unlink(path)
            raise
        else:
            for record in self._new:
                before.add(record)
        finally:
            self._new.close()
            self._new = before

    def sync(self) -> None:
        """Bring everything that was staged to the disk."""
        if self.count > SYNC_ONE_BY_ONE_MAX:
            sync_filesystem_of(self._directory)
        else:
            sync_files([self._staged(digest) for digest in self._digests()], self._directory)

    def place(self) -> None:
        """Give every staged object its name. `sync` comes before, `sync_names` after."""
        for digest in self._digests():
            final = self.objects.path(digest)
            parent = os.path.dirname(final)
            if parent not in self._known:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(parent)
                self._known.add(parent)
            # Another import may have been faster; both files are the same.
            os.rename(self._staged(digest), final)

    def sync_names(self) -> None:
        """Bring the names to the disk, those included on which another import was faster and may
        not have got to it yet."""
        sync_files([*self._known, self.objects.directory], self._directory)

    def is_staged(self, digest: str) -> bool:
        """Whether the object was added here and has no name yet."""
        return os.path.exists(self._staged(digest))

    def _staged(self, digest: str) -> bytes:
        return os.path.join(self._directory, digest[7:].encode())

    def _digests(self) -> Iterator[str]:
        return ("sha256:" + key.hex() for key, _ in self.checksums)

    def _present(self, digest: str) -> bool:
        path = self.objects.path(digest)
        if os.path.exists(path):
            self._known.add(os.path.dirname(path))
            return True
        return False

    def _create(self, path: bytes) -> int:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
        if self._mode_is_right is None:
            self._mode_is_right = stat.S_IMODE(os.fstat(fd).st_mode) == 0o444
        if not self._mode_is_right:  # a strict umask
            os.fchmod(fd, 0o444)
        return fd

    def _keep(self, digest: str, size: int, checksum: bytes) -> None:
        self._new.add(bytes.fromhex(digest[7:]) + checksum)
        self.new_bytes += size


def relative_path(digest: str) -> bytes:
    """The path of an object below the objects directory."""
    return os.fsencode(f"{digest[7:9]}/{digest[9:]}")


def sync_files(paths: list[bytes], directory: bytes) -> None:
    """Bring files or directories to the disk.

    Args:
        paths: what to sync.
        directory: any directory of the same filesystem.
    """
    if len(paths) > SYNC_ONE_BY_ONE_MAX:
        sync_filesystem_of(directory)
        return
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def sync_filesystem_of(directory: bytes) -> None:
    """Bring everything on a directory's filesystem to the disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_filesystem(fd)
    finally:
        os.close(fd)


def _find_syncfs() -> Callable[[int], int] | None:
    try:
        function = ctypes.CDLL(None, use_errno=True).syncfs
    except AttributeError:
        return None
    function.argtypes = [ctypes.c_int]
    found: Callable[[int], int] = function
    return found


_libc_syncfs = _find_syncfs()


def sync_filesystem(fd: int) -> None:
    """Bring everything on a descriptor's filesystem to the disk."""
    if _libc_syncfs is None:
        os.sync()
    elif _libc_syncfs(fd):
        number = ctypes.get_errno()
        raise OSError(number or errno.EIO, os.strerror(number or errno.EIO))


def _write_all(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, memoryview(data)[written:])
