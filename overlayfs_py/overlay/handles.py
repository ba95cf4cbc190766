"""Open files and directories.

A file that was opened read-only while it was in a lower layer shows what is written after its copy-up: the handle asks
its node before every read and goes over to the upper's file. What it had open before stays open until release, since a
read may still be running on it in a worker thread.

Thread: the one that runs the verbs.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import TypeVar

from overlayfs_py import syscalls
from overlayfs_py.errors import OverlayError
from overlayfs_py.layers.content import FileContent, NotCached
from overlayfs_py.layers.layer import Content
from overlayfs_py.overlay import attributes
from overlayfs_py.overlay.caller import keeps_setid
from overlayfs_py.overlay.copy_up import copy_up
from overlayfs_py.overlay.faults import Fault
from overlayfs_py.overlay.lookup import adopt, breaks_links, resolve
from overlayfs_py.overlay.merge_dir import Listing
from overlayfs_py.overlay.node import Node
from overlayfs_py.overlay.privileges import clear_setid
from overlayfs_py.overlay.state import State
from overlayfs_py.overlay.values import Caller, DirectoryEntry, Entry

log = logging.getLogger(__name__)

T = TypeVar("T")

_SYNC_FLAGS = os.O_SYNC | os.O_DSYNC
DT_DIR = 4


class FileHandle:
    """An open file.

    Attributes:
        node: the inode.
        flags: of open(2), as the caller gave them.
        content: the data; of the upper if `in_upper`.
    """

    __slots__ = ("_retired", "content", "flags", "in_upper", "node")

    def __init__(self, node: Node, flags: int, content: Content, in_upper: bool) -> None:
        self.node = node
        self.flags = flags
        self.content = content
        self.in_upper = in_upper
        self._retired: list[Content] = []

    @property
    def fd(self) -> int | None:
        """Descriptor of the real file, None where the data is not in one."""
        return self.content.fd

    @property
    def writable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    def go_over(self, content: Content) -> None:
        self._retired.append(self.content)
        self.content = content
        self.in_upper = True

    def close(self) -> None:
        for content in [self.content, *self._retired]:
            content.close()


def open_file(state: State, node: Node, flags: int, caller: Caller) -> FileHandle:
    """Raises OSError: EISDIR, EROFS, ENXIO for what is no regular file; Fault from copy-up."""
    if node.is_dir:
        raise OverlayError(errno.EISDIR)
    if node.kind != stat.S_IFREG:
        raise OverlayError(errno.ENXIO)
    if flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_TRUNC:
        return FileHandle(node, flags, *_open_for_reading(state, node))
    copy_up(state, node, size=0 if flags & os.O_TRUNC else None)
    kept = flags & (os.O_ACCMODE | (_SYNC_FLAGS if state.syncs else 0))
    fd = state.place(node).open(kept | os.O_NONBLOCK)
    if flags & os.O_TRUNC:
        try:
            _truncate(state, node, fd, flags, caller)
        except BaseException:
            os.close(fd)
            raise
    return FileHandle(node, flags, FileContent(fd), True)


def lower_file(node: Node, flags: int, fd: int) -> FileHandle:
    """The handle of a lower file that was opened for reading as `fd` already."""
    return FileHandle(node, flags, FileContent(fd), False)


def _truncate(state: State, node: Node, fd: int, flags: int, caller: Caller) -> None:
    if flags & os.O_ACCMODE == os.O_RDONLY:
        writing = state.place(node).open(os.O_WRONLY)
        try:
            syscalls.truncate(writing, 0)
        finally:
            os.close(writing)
    else:
        syscalls.truncate(fd, 0)
    if clear_setid(state, node, caller):
        state.attributes_changed(node)


def _open_for_reading(state: State, node: Node) -> tuple[Content, bool]:
    if node.upper and not node.metacopy:
        return FileContent(state.place(node).open(os.O_RDONLY | os.O_NONBLOCK)), True
    layer, ref = node.lowers[-1]
    return layer.open(ref), False


def _current(state: State, handle: FileHandle) -> Content:
    node = handle.node
    if not handle.in_upper and node.upper and not node.metacopy:
        handle.go_over(FileContent(state.place(node).open(os.O_RDONLY | os.O_NONBLOCK)))
    return handle.content


def read(state: State, handle: FileHandle, offset: int, size: int) -> bytes:
    """Raises Fault with the answer where the data is not in the page cache."""
    content = _current(state, handle)
    try:
        return content.pread_cached(size, offset)
    except NotCached:
        raise Fault(lambda: content.pread(size, offset), answer=True) from None


def read_into(state: State, handle: FileHandle, offset: int, buffer: memoryview) -> int | None:
    """The same into a buffer, which spares large reads two copies; None where that cannot be done at once."""
    content = _current(state, handle)
    if not isinstance(content, FileContent):
        return None
    try:
        return content.pread_cached_into(buffer, offset)
    except NotCached:
        return None


def _file(handle: FileHandle) -> int:
    if handle.content.fd is None:
        raise OverlayError(errno.EBADF)
    return handle.content.fd


def _written(handle: FileHandle) -> int:
    if not handle.writable:
        raise OverlayError(errno.EBADF)
    return _file(handle)


def write(state: State, handle: FileHandle, offset: int, data: bytes, caller: Caller | None) -> int:
    """Args: caller: who writes, if setuid and setgid bits are still to be cleared for it; None if they are not."""
    fd = _written(handle)
    if caller is not None:
        _clear_for_write(state, handle.node, fd, caller)
    if handle.flags & _SYNC_FLAGS and state.syncs:
        raise Fault(lambda: _write_all(fd, data, offset), answer=True)
    return _write_all(fd, data, offset)


def _write_all(fd: int, data: bytes, offset: int) -> int:
    done = syscalls.pwrite(fd, data, offset)
    while done < len(data):
        try:
            count = syscalls.pwrite(fd, data[done:], offset + done)
        except OSError:
            # What was written is written: a short count, and the next write gets the error.
            break
        if count == 0:
            break
        done += count
    return done


def _clear_for_write(state: State, node: Node, fd: int, caller: Caller) -> None:
    if (
        os.fstat(fd).st_mode & attributes.SETID
        and not keeps_setid(caller)
        and clear_setid(state, node, caller)
    ):
        state.attributes_changed(node)


def fsync(state: State, handle: FileHandle, datasync: bool) -> None:
    if not state.syncs or not handle.in_upper:
        return
    fd = _file(handle)
    raise Fault(lambda: os.fdatasync(fd) if datasync else os.fsync(fd), answer=True)


def fallocate(
    state: State, handle: FileHandle, mode: int, offset: int, length: int, caller: Caller
) -> None:
    """fallocate(2) in all its modes. Raises Fault with the answer."""
    fd = _written(handle)
    _clear_for_write(state, handle.node, fd, caller)
    raise Fault(lambda: syscalls.fallocate(fd, mode, offset, length), answer=True)


def seek(state: State, handle: FileHandle, offset: int, whence: int) -> int:
    """lseek(2) with SEEK_DATA or SEEK_HOLE."""
    content = _current(state, handle)
    if content.fd is not None:
        return os.lseek(content.fd, offset, whence)
    if not 0 <= offset < content.size:
        raise OverlayError(errno.ENXIO)
    return offset if whence == os.SEEK_DATA else content.size


def copy_file_range(
    state: State,
    source: FileHandle,
    source_offset: int,
    target: FileHandle,
    target_offset: int,
    length: int,
    caller: Caller,
) -> int:
    """copy_file_range(2); raises Fault with the answer, the number of bytes copied."""
    content = _current(state, source)
    fd = _written(target)
    _clear_for_write(state, target.node, fd, caller)

    def work() -> int:
        if content.fd is not None:
            try:
                return syscalls.copy_file_range(
                    content.fd, source_offset, fd, target_offset, length
                )
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
        return _write_all(fd, content.pread(min(length, 1 << 20), source_offset), target_offset)

    raise Fault(work, answer=True)


# --- directories ------------------------------------------------------------------------------------------------------


class DirectoryHandle:
    """An open directory: the names as they were when it was opened or rewound, so that none of them shows twice if it
    comes back."""

    __slots__ = ("_started", "listing", "node")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.listing: Listing | None = None
        self._started = False

    def rows_from(self, state: State, offset: int) -> Listing:
        if self.listing is None or (offset == 0 and self._started):
            self.listing = Listing(state, self.node)
            self._started = False
        self.listing.get()
        self._started = True
        return self.listing


def readdir(state: State, handle: DirectoryHandle, offset: int) -> Iterator[DirectoryEntry]:
    """The entries after `offset`; raises Fault where listing the directory may take long."""
    listing = handle.rows_from(state, offset)
    return _entries(state, handle.node, listing, offset)


def _entries(state: State, node: Node, listing: Listing, offset: int) -> Iterator[DirectoryEntry]:
    if offset <= 0:
        yield DirectoryEntry(b".", node.ino, DT_DIR, 1)
    if offset <= 1:
        yield DirectoryEntry(b"..", (node.parent or node).ino, DT_DIR, 2)
    by_name = breaks_links(state)
    rows = listing.rows
    for number in range(bisect_right(listing.cookies, offset), len(rows)):
        row, position = rows[number]
        part = listing.parts[position]
        from_upper = part[0] is state.upper
        if (from_upper and (node.impure or (node.merged and row.type == DT_DIR))) or by_name:
            found = resolve(state, node, row.name)
            if found is None:
                continue
            child = adopt(state, node, row.name, found)
            yield DirectoryEntry(row.name, child.ino, child.kind >> 12, listing.cookies[number])
        else:
            ino = state.numbers.number(listing.device(position), row.ino)
            yield DirectoryEntry(row.name, ino, row.type, listing.cookies[number])


def readdirplus(
    state: State, handle: DirectoryHandle, offset: int, known: Callable[[bytes], T | None]
) -> Iterator[tuple[DirectoryEntry, Entry | T | None]]:
    """The same with what a lookup of each name gives, None for . and .., and for a name that is damaged; names that are
    gone by now are left out.

    Args:
        known: what the caller has for a name in the place of a lookup, and of its number and type in the row.
    """
    listing = handle.rows_from(state, offset)
    return _entries_plus(state, handle.node, listing, offset, known)


def _entries_plus(
    state: State, node: Node, listing: Listing, offset: int, known: Callable[[bytes], T | None]
) -> Iterator[tuple[DirectoryEntry, Entry | T | None]]:
    if offset <= 0:
        yield DirectoryEntry(b".", node.ino, DT_DIR, 1), None
    if offset <= 1:
        yield DirectoryEntry(b"..", (node.parent or node).ino, DT_DIR, 2), None
    rows = listing.rows
    for number in range(bisect_right(listing.cookies, offset), len(rows)):
        row, _ = rows[number]
        had = known(row.name)
        if had is not None:
            yield DirectoryEntry(row.name, row.ino, row.type, listing.cookies[number]), had
            continue
        try:
            found = resolve(state, node, row.name)
            if found is None:
                continue
            child = adopt(state, node, row.name, found)
            values = attributes.of_lookup(state, child, found.status)
        except OSError as error:
            # One damaged entry must not hide the rest of its directory.
            log.warning("listing %r: %s", row.name, error)
            yield DirectoryEntry(row.name, row.ino, row.type, listing.cookies[number]), None
            continue
        listed = DirectoryEntry(row.name, child.ino, child.kind >> 12, listing.cookies[number])
        yield listed, Entry(child, values)
