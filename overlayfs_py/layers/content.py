"""The data of an open file, in the forms that layers keep it. Any thread; one descriptor may be read by many."""

from __future__ import annotations

import errno
import os


class NotCached(Exception):
    """The data is not in the page cache: reading it now would wait for a disk."""


class FileContent:
    """Data in a plain file of the host; owns `fd`."""

    __slots__ = ("_nowait", "fd")

    def __init__(self, fd: int) -> None:
        self.fd: int | None = fd
        self._nowait = True

    @property
    def size(self) -> int:
        assert self.fd is not None
        return os.fstat(self.fd).st_size

    def pread(self, size: int, offset: int) -> bytes:
        assert self.fd is not None
        return os.pread(self.fd, size, offset)

    def pread_cached(self, size: int, offset: int) -> bytes:
        """What pread gives, as long as that needs no disk.

        Raises:
            NotCached: it does.
        """
        assert self.fd is not None
        if not self._nowait:
            return os.pread(self.fd, size, offset)
        buffer = bytearray(size)
        try:
            count = os.preadv(self.fd, [buffer], offset, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                raise NotCached from None
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                self._nowait = False
                return os.pread(self.fd, size, offset)
            raise
        if count < size and offset + count < os.fstat(self.fd).st_size:
            raise NotCached
        return bytes(buffer) if count == size else bytes(buffer[:count])

    def pread_cached_into(self, buffer: memoryview, offset: int) -> int:
        """The same into a buffer; returns how much there was.

        Raises:
            NotCached: it needs a disk.
        """
        assert self.fd is not None
        if not self._nowait:
            raise NotCached
        try:
            count = os.preadv(self.fd, [buffer], offset, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL):
                raise NotCached from None
            raise
        if count < len(buffer) and offset + count < os.fstat(self.fd).st_size:
            raise NotCached
        return count

    def close(self) -> None:
        assert self.fd is not None
        os.close(self.fd)


class BytesContent:
    """Data that is in memory already, such as a small file in an index; `size` may go on with zeros."""

    __slots__ = ("_data", "fd", "size")

    def __init__(self, data: bytes, size: int | None = None) -> None:
        self.fd: int | None = None
        self._data = data
        self.size = len(data) if size is None else size

    def pread(self, size: int, offset: int) -> bytes:
        size = min(size, max(0, self.size - offset))
        return self._data[offset : offset + size].ljust(size, b"\0")

    pread_cached = pread

    def close(self) -> None:
        self._data = b""
