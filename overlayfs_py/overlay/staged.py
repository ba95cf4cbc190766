"""Data of a lower file on its way into the upper. See copy_up for the why.

Thread: made by the one that runs the verbs; `work` runs in a worker thread.
"""

from __future__ import annotations

import errno
import logging
import os

from overlayfs_py import syscalls
from overlayfs_py.errors import OverlayError
from overlayfs_py.layers.layer import Content, Layer, Ref
from overlayfs_py.layers.place import Place
from overlayfs_py.layers.upper import Upper
from overlayfs_py.overlay.faults import Shared

_CHUNK = 1 << 22
_CAPABILITY = "security.capability"
_ZERO_OFFSET = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM)


class StagedData:
    """The data of a lower file on its way into the upper.

    Args:
        size: how much of it is wanted; copy-up for a truncation needs only what stays.
    """

    def __init__(self, upper: Upper, layer: Layer, ref: Ref, size: int, sync: bool) -> None:
        self._upper = upper
        self._source = layer, ref
        self._sync = sync
        self.size = size
        self.name = b""
        self.fd = -1
        self.work = Shared(self._fill)

    def _fill(self) -> None:
        layer, ref = self._source
        name, fd = self._upper.stage_file()
        try:
            content = layer.open(ref)
            try:
                copy_data(content, fd, self.size)
            finally:
                content.close()
            if self._sync:
                os.fsync(fd)
        except BaseException:
            os.close(fd)
            self._upper.discard(name)
            raise
        self.name, self.fd = name, fd

    @property
    def failed(self) -> bool:
        return self.work.done and not self.name

    def close(self) -> None:
        """Nothing more is done through the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()

    def drop(self) -> None:
        """The copy is not wanted after all; one that is still being made is cleared at the next mount."""
        self.close()
        if self.name:
            self._upper.discard(self.name)
            self.name = b""


class InPlaceData:
    """The data of a metacopy on its way into the upper file that stands for it already."""

    def __init__(self, place: Place, layer: Layer, ref: Ref, size: int, sync: bool) -> None:
        self._target = place.open(os.O_RDWR)
        self._source = layer, ref
        self._sync = sync
        self.size = size
        self.failed = False
        self.work = Shared(self._fill)

    def _fill(self) -> None:
        layer, ref = self._source
        try:
            before = os.fstat(self._target)
            capability = _capability(self._target)
            syscalls.truncate(self._target, 0)
            content = layer.open(ref)
            try:
                copy_data(content, self._target, self.size)
            finally:
                content.close()
            if capability is not None:
                os.setxattr(self._target, _CAPABILITY, capability)
            os.utime(self._target, ns=(before.st_atime_ns, before.st_mtime_ns))
            if self._sync:
                os.fsync(self._target)
        except BaseException:
            self.failed = True
            raise
        finally:
            os.close(self._target)


def _capability(fd: int) -> bytes | None:
    """The file capability, which any write takes away."""
    try:
        return os.getxattr(fd, _CAPABILITY)
    except OSError:
        return None


def copy_data(source: Content, target: int, size: int) -> None:
    """Copy the first `size` bytes of `source` to the start of the empty file `target`, holes as holes.

    Raises:
        OSError: reading or writing failed; ENOSPC and EIO as the layers say them.
    """
    whole = size >= source.size
    if source.fd is None:
        _copy_bytes(source, target, 0, min(size, source.size))
        syscalls.truncate(target, size)
        return
    if whole and size and syscalls.clone_file(source.fd, target):
        return
    end = min(size, source.size)
    offset = 0
    while offset < end:
        try:
            start = os.lseek(source.fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            start = offset
        if start >= end:
            break
        try:
            stop = min(end, os.lseek(source.fd, start, os.SEEK_HOLE))
        except OSError:
            stop = end
        _copy_range(source, target, start, stop)
        offset = stop
    syscalls.truncate(target, size)


def _copy_range(source: Content, target: int, start: int, stop: int) -> None:
    assert source.fd is not None
    while start < stop:
        try:
            count = syscalls.copy_file_range(
                source.fd, start, target, start, min(stop - start, _CHUNK)
            )
        except OSError as error:
            if error.errno not in _ZERO_OFFSET:
                raise
            count = 0
        if count == 0:
            _copy_bytes(source, target, start, stop)
            return
        start += count


def _copy_bytes(source: Content, target: int, start: int, stop: int) -> None:
    while start < stop:
        data = source.pread(min(stop - start, _CHUNK), start)
        if not data:
            raise OverlayError(errno.EIO, "a lower file ends before its size", logging.WARNING)
        view = memoryview(data)
        while view:
            count = syscalls.pwrite(target, view, start)
            view = view[count:]
            start += count
