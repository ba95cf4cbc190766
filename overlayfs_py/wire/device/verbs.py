"""Dispatch with what only this transport carries: packed listings, passthrough, writers known by request.

Like `Dispatch`: request methods give a `Call`; what a call does runs under the mount's lock.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from overlayfs_py.errors import OverlayError
from overlayfs_py.overlay.faults import Fault
from overlayfs_py.overlay.values import Attributes, Caller, DirectoryEntry, Entry
from overlayfs_py.wire.call import Call
from overlayfs_py.wire.device import replies
from overlayfs_py.wire.device.passthrough import Backings
from overlayfs_py.wire.device.protocol import DIRENT, DIRENTPLUS, ENTRY, OUT_HEADER, Open
from overlayfs_py.wire.device.replies import Timeout
from overlayfs_py.wire.dispatch import ABSENT, Dispatch, OpenDirectory, OpenFile, WireEntry
from overlayfs_py.wire.nodes import ROOT_ID, Counter, NodeIds, Record

if TYPE_CHECKING:
    from overlayfs_py.overlay.handles import DirectoryHandle, FileHandle
    from overlayfs_py.overlay.node import Node
    from overlayfs_py.overlay.overlay import Overlay


class Others(Protocol):
    """Who answers for some names of a directory, by its node id, in the place of the union."""

    def tell(self, directory: int, name: bytes) -> tuple[bytes, int, int] | None:
        """An `Elsewhere`, counted as one more lookup."""

    def untell(self, told: bytes) -> None:
        """It was not told after all."""


class Elsewhere(NamedTuple):
    """What somebody else tells of a name: struct fuse_entry_out, st_ino, and the type in a listing."""

    told: bytes
    ino: int
    type: int


_NEVER = Timeout(0.0)
_UNTOLD_ID = (1 << 32) - 1
_UNTOLD = (0,) * 22
"""struct fuse_entry_out of `.` and `..`, for which the kernel takes no reference."""


class Opened(NamedTuple):
    """The reply to an open, as fuse_open_out has it; `entry` where the file was made."""

    file: int
    flags: int
    backing: int
    entry: tuple[int, ...] = ()


class Listed:
    """Directories that are being listed, where the kernel opens none. The offset of a row is made from its name, so
    what is dropped is only read again. Under the mount's lock.
    """

    _MAX = 16
    """More are hardly read at once; each may hold the names of a large directory."""

    def __init__(self) -> None:
        self._by_id: dict[int, OpenDirectory] = {}

    def get(self, record: Record) -> OpenDirectory | None:
        opened = self._by_id.get(record.id)
        return opened if opened is not None and opened.record is record else None

    def add(self, record: Record, handle: DirectoryHandle) -> OpenDirectory:
        if len(self._by_id) >= self._MAX:
            del self._by_id[next(iter(self._by_id))]
        opened = self._by_id[record.id] = OpenDirectory(handle, record)
        return opened

    def drop(self, opened: OpenDirectory) -> None:
        self._by_id.pop(opened.record.id, None)


class DeviceDispatch(Dispatch):
    """The requests of one mount that is served through /dev/fuse.

    `backings` is set once passthrough was agreed; `links_known` is told st_nlink of directories, by node id;
    `others` answers for names that it has; `listed` is set where the kernel opens no directory.

    Args:
        first_id: node ids of this mount begin here.
    """

    def __init__(
        self, overlay: Overlay, timeout_s: float | None = None, first_id: int = ROOT_ID + 1
    ) -> None:
        super().__init__(overlay, Counter(first_id), timeout_s)
        self.first_id = first_id
        self.timeout = Timeout(timeout_s)
        self.backings: Backings | None = None
        self.links_known: Callable[[int, int], None] | None = None
        self.others: Others | None = None
        self.listed: Listed | None = None
        # Who limits the timeouts expects changes behind our back: pages and listings are not to be trusted.
        caching = timeout_s is None
        self.file_flags = Open.KEEP_CACHE if caching else 0
        self.directory_flags = Open.KEEP_CACHE | Open.CACHE_DIR if caching else 0

    def attribute_timeout(self, id: int) -> Timeout:
        """How long the kernel may trust the attributes of a node."""
        moving = self.backings is not None and id in self.backings.moving
        return _NEVER if moving or self._nodes.is_told_twice(id) else self.timeout

    def told(self, entry: WireEntry) -> tuple[int, ...]:
        """struct fuse_entry_out."""
        return replies.entry_fields(entry, self.timeout, self.attribute_timeout(entry.node_id))

    # What somebody else kept of nodes and open files; under the mount's lock

    def use_ids(self, ids: NodeIds) -> None:
        """Have nodes named by somebody else; before any but the root is known."""
        self._nodes.ids = ids

    def keep_nodes(self) -> None:
        """Have ids lead to their nodes although the kernel forgets them, until the nodes are removed."""
        self._nodes.keeps = True

    def record(self, id: int) -> Record | None:
        try:
            return self._nodes[id]
        except KeyError:
            return None

    def enter_again(self, node: Node) -> None:
        """Enter a node that the kernel was told of already."""
        self._nodes.enter(node).lookups -= 1

    def reconsider(self, id: int) -> None:
        """A node may not be needed any more."""
        self._nodes.reconsider(id)

    def take_file(
        self,
        file: int,
        handle: FileHandle,
        record: Record,
        opener: Caller,
        backing: int,
        upper: bool,
    ) -> None:
        """Args: backing: id of the backing file, 0 if there is none; upper: whether that is the upper's."""
        self._files[file] = OpenFile(handle, record, opener)
        if self.backings is not None:
            self.backings.took(file, record.id, handle, backing, upper=upper)

    def forget(self, forgets: Iterable[tuple[int, int]]) -> None:
        forgets = list(forgets)
        super().forget(forgets)
        if self.backings is not None:
            with self.lock:
                for id, _ in forgets:
                    if id not in self._nodes:
                        self.backings.forget(id)

    # The requests that come most often, without the steps that only slow work and errors need

    def lookup_now(self, unique: int, parent: int, name: bytes) -> bytes | None:
        """The reply to LOOKUP; None if something stands in its way, which `lookup` then meets again."""
        timeout = self.timeout
        try:
            node = self._parent(parent).node
            with self.lock:
                entry = self.overlay.lookup(node, name)
                if entry is None:
                    return replies.entry(unique, ABSENT, timeout, timeout)
                record = self._nodes.enter(entry.node)
        except (KeyError, OSError, Fault):
            return None
        told = WireEntry(record.id, record.generation, entry.attributes)
        return replies.entry(unique, told, timeout, self.attribute_timeout(record.id))

    def getattr_now(self, unique: int, id: int) -> bytes | None:
        """The same for GETATTR."""
        try:
            node = self._nodes[id].node
            with self.lock:
                found = self.overlay.getattr(node)
                if node.is_dir and self.links_known is not None:
                    self.links_known(id, found.nlink)
        except (KeyError, OSError, Fault):
            return None
        return replies.attributes(unique, found, self.attribute_timeout(id))

    def read_now(
        self, unique: int, file: int, offset: int, size: int, buffer: memoryview
    ) -> memoryview | None:
        """The same for READ; the reply is put into `buffer`."""
        start = OUT_HEADER.size
        try:
            handle = self._files[file].handle
            with self.lock:
                count = self.overlay.read_into(handle, offset, buffer[start : start + size])
        except (KeyError, OSError, Fault):
            return None
        if count is None:
            return None
        OUT_HEADER.pack_into(buffer, 0, start + count, 0, unique)
        return buffer[: start + count]

    # File handles: LOOKUP of `.` and `..`

    def itself(self, id: int) -> Call[WireEntry]:
        """The entry of a node by its id alone; ESTALE if it has no name any more."""
        return self._by_id(id, lambda node: node)

    def parent(self, id: int) -> Call[WireEntry]:
        """That of the directory it is in."""
        return self._by_id(id, lambda node: node.parent or node)

    def _by_id(self, id: int, choose: Callable[[Node], Node]) -> Call[WireEntry]:
        record = self.record(id)
        # What the daemon does not know any more was removed, or is of another mount: no reason for a warning.
        if record is None or not record.node.linked or self._nodes.is_superseded(record):
            raise OverlayError(errno.ESTALE)
        node = choose(record.node)

        def entered(found: Attributes) -> WireEntry:
            return self._entered(Entry(node, found))

        return Call(self.overlay.getattr, (node,), entered, (record,))

    # Nodes

    def statx(self, id: int) -> Call[tuple[Attributes, int | None]]:
        """The attributes and the time of birth in nanoseconds, None if that is not known."""
        record = self._node(id)

        def with_birth(found: Attributes) -> tuple[Attributes, int | None]:
            return found, self.overlay.birth_ns(record.node)

        return Call(self.overlay.getattr, (record.node,), with_birth, (record,))

    def ioctl(self, id: int, command: int, data: bytes) -> Call[bytes]:
        record = self._node(id)
        return Call(self.overlay.ioctl, (record.node, command, data), None, (record,))

    def freeze(self, caller: Caller) -> Call[bytes]:
        """Hold back what changes something until the calling process thaws it, or ends (see `wire.gate`)."""

        def freeze() -> None:
            if _user(caller) not in (0, os.geteuid()):
                raise OverlayError(errno.EPERM)
            if self.gate.owner:
                raise OverlayError(errno.EBUSY)
            self.gate.close(_process(caller))
            raise Fault(self.gate.drain, answer=True)

        return Call(freeze, ())

    def thaw(self, caller: Caller) -> Call[bytes]:
        def thaw() -> bytes:
            if self.gate.owner != _process(caller):
                raise OverlayError(errno.EPERM)
            self.gate.open()
            return b""

        return Call(thaw, ())

    # Files

    def open_file(self, id: int, flags: int, caller: Caller) -> Call[Opened]:
        record = self._node(id)
        if self._nodes.is_superseded(record):
            raise OverlayError(errno.ESTALE)

        def opened(handle: FileHandle) -> Opened:
            if self._supersedes(handle, record):
                self.overlay.release(handle)
                raise OverlayError(errno.ESTALE)
            return self._opened(handle, record, caller)

        return Call(self.overlay.open, (record.node, flags, caller), opened, (record,))

    def create_file(
        self, parent: int, name: bytes, flags: int, mode: int, caller: Caller
    ) -> Call[Opened]:
        record = self._parent(parent)
        arguments = (record.node, name, flags, mode, caller)
        return Call(self.overlay.create, arguments, self._made(caller), (record,))

    def create_nameless(self, parent: int, flags: int, mode: int, caller: Caller) -> Call[Opened]:
        record = self._parent(parent)
        arguments = (record.node, flags, mode, caller)
        return Call(self.overlay.tmpfile, arguments, self._made(caller), (record,))

    def _made(self, caller: Caller) -> Callable[[tuple[Entry, FileHandle]], Opened]:
        def made(result: tuple[Entry, FileHandle]) -> Opened:
            entry, handle = result
            id = self.id_of(entry.node)
            if id is not None:
                self._supersedes(handle, self._nodes[id])
            told = self._entered(entry)
            opened = self._opened(handle, self._nodes[told.node_id], caller)
            return opened._replace(entry=self.told(told))

        return made

    def _supersedes(self, handle: FileHandle, record: Record) -> bool:
        """Whether a node needs another id, since opens of this one stay on what the new one was copied up from."""
        if self.backings is None or not self.backings.is_behind(record.id, handle):
            return False
        self._nodes.supersede(record)
        self.backings.superseded(record.id)
        return True

    def _opened(self, handle: FileHandle, record: Record, caller: Caller) -> Opened:
        file = self._add_file(handle, record, caller)
        if self.backings is None:
            return Opened(file, self.file_flags, 0)
        flags, backing = self.backings.opened(file, record.id, handle, self.file_flags)
        return Opened(file, flags, backing)

    def release_file(self, file: int) -> Call[None]:
        call = self.release(file)
        if self.backings is None:
            return call
        backings = self.backings

        def released(result: None) -> None:
            backings.released(file)

        call.finish = released
        return call

    def write_as(self, file: int, offset: int, data: bytes, writer: Caller | None) -> Call[int]:
        """Args: writer: for whom setuid and setgid are to be cleared; None if they are not."""
        opened = self._file(file)
        arguments = (opened.handle, offset, data, writer)
        return Call(self.overlay.write, arguments, None, (opened.record,))

    # Directories

    def directory(self, id: int, handle: int) -> OpenDirectory:
        """One that is to be listed; the kernel names its node, and no handle where it opens none."""
        listed = self.listed
        if listed is None:
            return self._directory(handle)
        with self.lock:
            record = self._node(id)
            return listed.get(record) or listed.add(record, self.overlay.opendir(record.node))

    def listing(self, opened: OpenDirectory, offset: int, size: int, plus: bool) -> Call[bytes]:
        """As many rows after `offset` as fit into `size` bytes; none at the end.

        Args:
            plus: each with its entry, counted as a lookup.
        """

        def finished(rows: bytes) -> bytes:
            if not rows and self.listed is not None:
                self.listed.drop(opened)
            return rows

        verb = self._rows_plus if plus else self._rows_plain
        return Call(verb, (opened, offset, size), finished, (opened.record,))

    def sync_directory(self, opened: OpenDirectory, datasync: bool) -> Call[None]:
        return Call(self.overlay.fsyncdir, (opened.handle, datasync), None, (opened.record,))

    def _rows_plain(self, opened: OpenDirectory, offset: int, size: int) -> bytes:
        packed = bytearray()
        for row in self.overlay.readdir(opened.handle, offset):
            name = _padded(row.name)
            if len(packed) + DIRENT.size + len(name) > size:
                break
            packed += DIRENT.pack(row.ino, row.offset, len(row.name), row.type)
            packed += name
        return bytes(packed)

    def _rows_plus(self, opened: OpenDirectory, offset: int, size: int) -> bytes:
        packed = bytearray()
        for row, entry in _as_far_as_possible(self._entries(opened, offset)):
            name = _padded(row.name)
            fits = len(packed) + DIRENTPLUS.size + len(name) <= size
            if isinstance(entry, Elsewhere):
                if not fits and self.others is not None:
                    self.others.untell(entry.told)
                told, ino, kind = entry
            elif fits:
                fields = _UNTOLD if entry is None else self.told(self._entered(entry))
                told, ino, kind = ENTRY.pack(*fields), row.ino, row.type
            if not fits:
                break
            packed += told + DIRENT.pack(ino, row.offset, len(row.name), kind) + name
        return bytes(packed)

    def _entries(
        self, opened: OpenDirectory, offset: int
    ) -> Iterator[tuple[DirectoryEntry, Entry | Elsewhere | None]]:
        others, directory = self.others, opened.record.id
        if others is None:
            return self.overlay.readdirplus(opened.handle, offset)
        tell = others.tell

        def known(name: bytes) -> Elsewhere | None:
            told = tell(directory, name)
            return None if told is None else Elsewhere._make(told)

        return self.overlay.readdirplus(opened.handle, offset, known)


def _as_far_as_possible(
    rows: Iterator[tuple[DirectoryEntry, Entry | Elsewhere | None]],
) -> Iterator[tuple[DirectoryEntry, Entry | Elsewhere | None]]:
    """What is known already goes out; the next request meets the same obstacle first."""
    first = True
    try:
        for row in rows:
            yield row
            first = False
    except (Fault, OSError):
        if first:
            raise


def _padded(name: bytes) -> bytes:
    return name + bytes(-len(name) % 8)


def _process(caller: Caller) -> int:
    """The process of the calling thread, which is what the kernel tells.

    Raises:
        OverlayError: ESRCH, it is in a process namespace that does not show here.
    """
    try:
        with open(f"/proc/{caller.pid}/status") as status:
            return int(next(line for line in status if line.startswith("Tgid:")).split()[1])
    except (OSError, StopIteration):
        raise OverlayError(errno.ESRCH) from None


def _user(caller: Caller) -> int | None:
    """Who asks. On mounts that may be idmapped the kernel tells the user of those requests only that make something;
    whoever waits for an answer can be looked at."""
    if caller.uid != _UNTOLD_ID:
        return caller.uid
    try:
        with open(f"/proc/{caller.pid}/status") as status:
            line = next(line for line in status if line.startswith("Uid:"))
    except (OSError, StopIteration):  # in a pid namespace that we do not see
        return None
    return int(line.split()[2])
