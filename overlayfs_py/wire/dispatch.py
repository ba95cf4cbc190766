"""Requests to verbs and back, whatever the transport: node ids, handles, restarts, errnos.

The one place where an exception becomes an errno. Each request method takes what is on the wire
(node ids, handle ids, names) and gives a `Call`; `attempt` runs it under the mount's lock, so
verbs run one at a time however many threads a transport reads with. Slow work (`Fault`) is
the driver's to have done: see `driver`.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from overlayfs_py.errors import OverlayError
from overlayfs_py.overlay.faults import RESTARTS_MAX, Fault
from overlayfs_py.overlay.values import Attributes, Caller, Changes, DirectoryEntry, Entry
from overlayfs_py.wire.call import Call
from overlayfs_py.wire.gate import Gate
from overlayfs_py.wire.nodes import NodeIds, NodeTable, Record

if TYPE_CHECKING:
    from overlayfs_py.overlay.handles import DirectoryHandle, FileHandle
    from overlayfs_py.overlay.node import Node
    from overlayfs_py.overlay.overlay import Overlay

log = logging.getLogger(__name__)

T = TypeVar("T")

# Errors that a caller cannot bring about by asking for the impossible: something below is damaged.
_DAMAGE = frozenset({errno.EIO, errno.EUCLEAN, errno.EBADF, errno.EFAULT, errno.ENOTRECOVERABLE})


class Refused(Exception):
    """The request is answered with this errno; the cause is in the log already."""

    def __init__(self, number: int) -> None:
        super().__init__(number, os.strerror(number))
        self.errno = number


class WireEntry(NamedTuple):
    """An entry as it goes over the wire; `node_id` 0 and no attributes: certainly absent."""

    node_id: int
    generation: int
    attributes: Attributes | None


ABSENT = WireEntry(0, 0, None)


class ListedEntry(NamedTuple):
    """A row of a listing and the entry it names; None for `.` and `..`."""

    row: DirectoryEntry
    entry: Entry | None


@dataclass(slots=True)
class OpenFile:
    """`opener` stands for the writer where the transport does not say who writes."""

    handle: FileHandle
    record: Record
    opener: Caller


@dataclass(slots=True)
class OpenDirectory:
    handle: DirectoryHandle
    record: Record


class Dispatch:
    """The requests of one mount.

    Args:
        overlay: its verbs are called from whichever thread asks, one at a time.
        ids: how this transport names nodes.
        timeout_s: how long the kernel may remember names and attributes; None: without limit.
    """

    def __init__(self, overlay: Overlay, ids: NodeIds, timeout_s: float | None = None) -> None:
        self.overlay = overlay
        self.timeout_s = timeout_s
        self.lock = threading.Lock()
        self.gate = Gate()
        self._nodes = NodeTable(overlay.root, ids, overlay.forget)
        self._files: dict[int, OpenFile] = {}
        self._directories: dict[int, OpenDirectory] = {}
        self._handle_ids = itertools.count(1)

    # Running calls

    def begin(self, request: Callable[..., Call[T]], *arguments: Any) -> Call[T]:
        """The call for a request; raises Refused if it names what is not there."""
        try:
            return request(*arguments)
        except BaseException as error:
            raise self.refusal(request.__name__, error) from None

    def attempt(self, call: Call[T]) -> T | Fault:
        """Try once. A Fault is returned, not raised: its work is to be done and then `settle`d,
        or the call attempted again. Raises Refused.
        """
        try:
            with self.lock:
                return call.complete(self.gate.run(call))
        except Fault as fault:
            return fault
        except BaseException as error:
            raise self.refusal(call.name, error) from None

    def settle(self, call: Call[T], result: Any) -> T:
        """The reply to a call whose fault's work was itself the answer. Raises Refused."""
        try:
            with self.lock:
                return call.complete(result)
        except BaseException as error:
            raise self.refusal(call.name, error) from None

    def pin(self, call: Call[Any]) -> None:
        """Keep the call's nodes while its fault is worked on; undone with `unpin`."""
        with self.lock:
            for record in call.pins:
                self._nodes.pin(record)

    def unpin(self, call: Call[Any]) -> None:
        with self.lock:
            self.gate.end(call)
            for record in call.pins:
                self._nodes.unpin(record)

    def refusal(self, name: str, error: BaseException) -> Refused:
        """Log an error at its level and say what the caller of the system call sees.

        What is neither an OSError nor a lack of memory is a bug: EIO, with its traceback in the
        log. Re-raises what ends a task or the process.
        """
        if isinstance(error, OSError) and error.errno is not None:
            level = getattr(error, "level", None)
            if level is None:
                level = logging.WARNING if error.errno in _DAMAGE else logging.DEBUG
            if log.isEnabledFor(level):
                log.log(level, "%s: %s", name, error)
            return Refused(error.errno)
        if isinstance(error, MemoryError):
            log.error("%s: out of memory", name)
            return Refused(errno.ENOMEM)
        if not isinstance(error, Exception):
            raise error
        log.error("%s: unexpected %s", name, type(error).__name__, exc_info=error)
        return Refused(errno.EIO)

    def endless(self, call: Call[Any]) -> Refused:
        """The answer to a call that faulted more often than any may."""
        log.error("%s: no progress after %d restarts: giving up", call.name, RESTARTS_MAX)
        return Refused(errno.EIO)

    # Ids

    def _node(self, id: int) -> Record:
        try:
            return self._nodes[id]
        except KeyError:
            raise _stale(f"node {id}") from None

    def _parent(self, id: int) -> Record:
        record = self._node(id)
        if not record.node.is_dir:  # a path would lead on through a symlink
            raise OverlayError(errno.ENOTDIR)
        return record

    def _file(self, id: int) -> OpenFile:
        try:
            return self._files[id]
        except KeyError:
            raise _stale(f"file handle {id}") from None

    def _directory(self, id: int) -> OpenDirectory:
        try:
            return self._directories[id]
        except KeyError:
            raise _stale(f"directory handle {id}") from None

    def _entered(self, entry: Entry) -> WireEntry:
        record = self._nodes.enter(entry.node)
        return WireEntry(record.id, record.generation, entry.attributes)

    def _found(self, entry: Entry | None) -> WireEntry:
        return ABSENT if entry is None else self._entered(entry)

    def enter(self, entry: Entry) -> WireEntry:
        """Count an entry that is about to be told; undone with `forget` if it was not."""
        with self.lock:
            return self._entered(entry)

    def forget(self, forgets: Iterable[tuple[int, int]]) -> None:
        """FORGET and BATCH_FORGET: (node id, lookups given back). Never fails."""
        with self.lock:
            for id, count in forgets:
                try:
                    self._nodes.forget(id, count)
                except (KeyError, ValueError) as error:
                    log.error("forget of node %d, %d lookups: %s", id, count, error)
                except Exception:
                    log.exception("forget of node %d", id)

    # Names

    def lookup(self, parent: int, name: bytes) -> Call[WireEntry]:
        record = self._parent(parent)
        return Call(self.overlay.lookup, (record.node, name), self._found, (record,))

    def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller
    ) -> Call[WireEntry]:
        record = self._parent(parent)
        arguments = (record.node, name, mode, rdev, caller)
        return Call(self.overlay.mknod, arguments, self._entered, (record,))

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Call[WireEntry]:
        record = self._parent(parent)
        return Call(self.overlay.mkdir, (record.node, name, mode, caller), self._entered, (record,))

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Call[WireEntry]:
        record = self._parent(parent)
        arguments = (record.node, name, target, caller)
        return Call(self.overlay.symlink, arguments, self._entered, (record,))

    def link(self, id: int, parent: int, name: bytes, caller: Caller) -> Call[WireEntry]:
        source, record = self._node(id), self._parent(parent)
        arguments = (source.node, record.node, name, caller)
        return Call(self.overlay.link, arguments, self._entered, (source, record))

    def unlink(self, parent: int, name: bytes, caller: Caller) -> Call[None]:
        record = self._parent(parent)
        return Call(self.overlay.unlink, (record.node, name, caller), None, (record,))

    def rmdir(self, parent: int, name: bytes, caller: Caller) -> Call[None]:
        record = self._parent(parent)
        return Call(self.overlay.rmdir, (record.node, name, caller), None, (record,))

    def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
        caller: Caller,
    ) -> Call[None]:
        old, new = self._parent(parent), self._parent(new_parent)
        arguments = (old.node, name, new.node, new_name, flags, caller)
        return Call(self.overlay.rename, arguments, None, (old, new))

    # Nodes

    @property
    def known(self) -> int:
        """How many nodes the kernel may name, the root among them."""
        return len(self._nodes)

    def id_of(self, node: Node) -> int | None:
        """The id that the kernel has for a node; None if it knows none. Takes no lock."""
        return self._nodes.id_of(node)

    def getattr(self, id: int, file: int | None = None) -> Call[Attributes]:
        record = self._node(id)
        handle = None if file is None else self._file(file).handle
        return Call(self.overlay.getattr, (record.node, handle), None, (record,))

    def setattr(
        self, id: int, changes: Changes, caller: Caller, file: int | None = None
    ) -> Call[Attributes]:
        record = self._node(id)
        handle = None if file is None else self._file(file).handle
        return Call(self.overlay.setattr, (record.node, changes, caller, handle), None, (record,))

    def readlink(self, id: int) -> Call[bytes]:
        record = self._node(id)
        return Call(self.overlay.readlink, (record.node,), None, (record,))

    def setxattr(
        self, id: int, name: bytes, value: bytes, flags: int, caller: Caller
    ) -> Call[None]:
        record = self._node(id)
        return Call(
            self.overlay.setxattr, (record.node, name, value, flags, caller), None, (record,)
        )

    def getxattr(self, id: int, name: bytes) -> Call[bytes]:
        record = self._node(id)
        return Call(self.overlay.getxattr, (record.node, name), None, (record,))

    def listxattr(self, id: int, caller: Caller) -> Call[list[bytes]]:
        record = self._node(id)
        return Call(self.overlay.listxattr, (record.node, caller), None, (record,))

    def removexattr(self, id: int, name: bytes, caller: Caller) -> Call[None]:
        record = self._node(id)
        return Call(self.overlay.removexattr, (record.node, name, caller), None, (record,))

    def statfs(self) -> Call[os.statvfs_result]:
        return Call(self.overlay.statfs, ())

    # Open files

    def open(self, id: int, flags: int, caller: Caller) -> Call[int]:
        record = self._node(id)

        def opened(handle: FileHandle) -> int:
            return self._add_file(handle, record, caller)

        return Call(self.overlay.open, (record.node, flags, caller), opened, (record,))

    def create(
        self, parent: int, name: bytes, flags: int, mode: int, caller: Caller
    ) -> Call[tuple[WireEntry, int]]:
        record = self._parent(parent)
        arguments = (record.node, name, flags, mode, caller)
        return Call(self.overlay.create, arguments, self._created(caller), (record,))

    def tmpfile(
        self, parent: int, flags: int, mode: int, caller: Caller
    ) -> Call[tuple[WireEntry, int]]:
        record = self._parent(parent)
        arguments = (record.node, flags, mode, caller)
        return Call(self.overlay.tmpfile, arguments, self._created(caller), (record,))

    def _created(
        self, caller: Caller
    ) -> Callable[[tuple[Entry, FileHandle]], tuple[WireEntry, int]]:
        def created(made: tuple[Entry, FileHandle]) -> tuple[WireEntry, int]:
            entry, handle = made
            told = self._entered(entry)
            return told, self._add_file(handle, self._nodes[told.node_id], caller)

        return created

    def _add_file(self, handle: FileHandle, record: Record, opener: Caller) -> int:
        id = next(self._handle_ids)
        self._files[id] = OpenFile(handle, record, opener)
        return id

    def read(self, file: int, offset: int, size: int) -> Call[bytes]:
        opened = self._file(file)
        return Call(self.overlay.read, (opened.handle, offset, size), None, (opened.record,))

    def write(self, file: int, offset: int, data: bytes, caller: Caller | None = None) -> Call[int]:
        """`caller` None: the transport does not say, so it is who opened the file."""
        opened = self._file(file)
        arguments = (opened.handle, offset, data, caller or opened.opener)
        return Call(self.overlay.write, arguments, None, (opened.record,))

    def flush(self, file: int) -> Call[None]:
        opened = self._file(file)
        return Call(self.overlay.flush, (opened.handle,), None, (opened.record,))

    def fsync(self, file: int, datasync: bool) -> Call[None]:
        opened = self._file(file)
        return Call(self.overlay.fsync, (opened.handle, datasync), None, (opened.record,))

    def release(self, file: int) -> Call[None]:
        """The handle is gone whatever the verb says: the kernel does not ask twice."""
        opened = self._file(file)
        del self._files[file]
        return Call(self.overlay.release, (opened.handle,), None, (opened.record,))

    def fallocate(
        self, file: int, mode: int, offset: int, length: int, caller: Caller
    ) -> Call[None]:
        opened = self._file(file)
        arguments = (opened.handle, mode, offset, length, caller)
        return Call(self.overlay.fallocate, arguments, None, (opened.record,))

    def seek(self, file: int, offset: int, whence: int) -> Call[int]:
        opened = self._file(file)
        return Call(self.overlay.seek, (opened.handle, offset, whence), None, (opened.record,))

    def copy_file_range(
        self,
        source: int,
        source_offset: int,
        target: int,
        target_offset: int,
        length: int,
        caller: Caller,
    ) -> Call[int]:
        src, dst = self._file(source), self._file(target)
        arguments = (src.handle, source_offset, dst.handle, target_offset, length, caller)
        return Call(self.overlay.copy_file_range, arguments, None, (src.record, dst.record))

    # Open directories

    def opendir(self, id: int) -> Call[int]:
        record = self._node(id)

        def opened(handle: DirectoryHandle) -> int:
            directory = next(self._handle_ids)
            self._directories[directory] = OpenDirectory(handle, record)
            return directory

        return Call(self.overlay.opendir, (record.node,), opened, (record,))

    def readdir(self, directory: int, offset: int, count: int) -> Call[list[DirectoryEntry]]:
        """At most `count` rows from `offset` on; an empty list is the end."""
        opened = self._directory(directory)
        return Call(self._rows, (opened, offset, count), None, (opened.record,))

    def readdirplus(self, directory: int, offset: int, count: int) -> Call[list[ListedEntry]]:
        """The same with the entry of each row, not yet counted (see `enter`)."""
        opened = self._directory(directory)
        return Call(self._rows_and_entries, (opened, offset, count), None, (opened.record,))

    def _rows(self, opened: OpenDirectory, offset: int, count: int) -> list[DirectoryEntry]:
        return list(islice(self.overlay.readdir(opened.handle, offset), count))

    def _rows_and_entries(
        self, opened: OpenDirectory, offset: int, count: int
    ) -> list[ListedEntry]:
        listed: list[ListedEntry] = []
        try:
            for row, entry in islice(self.overlay.readdirplus(opened.handle, offset), count):
                listed.append(ListedEntry(row, entry))
        except (Fault, OSError):
            # What is known already goes out; the next request meets the same obstacle first.
            if not listed:
                raise
        return listed

    def releasedir(self, directory: int) -> Call[None]:
        opened = self._directory(directory)
        del self._directories[directory]
        return Call(self.overlay.releasedir, (opened.handle,), None, (opened.record,))

    def fsyncdir(self, directory: int, datasync: bool) -> Call[None]:
        opened = self._directory(directory)
        return Call(self.overlay.fsyncdir, (opened.handle, datasync), None, (opened.record,))

    # The end

    def close(self) -> None:
        """Release what the kernel left open when it let go of the mount; the overlay stays open."""
        with self.lock:
            for opened in self._files.values():
                self._last(self.overlay.release, opened.handle)
            for directory in self._directories.values():
                self._last(self.overlay.releasedir, directory.handle)
            self._files.clear()
            self._directories.clear()
            self._nodes.clear()

    def _last(self, verb: Callable[[Any], None], handle: Any) -> None:
        try:
            verb(handle)
        except Fault as fault:
            try:
                fault.work()
            except OSError as error:
                self.refusal(verb.__name__, error)
        except Exception as error:
            self.refusal(verb.__name__, error)


def _stale(what: str) -> OverlayError:
    return OverlayError(errno.ESTALE, f"the kernel named {what}, which is not known", logging.ERROR)
