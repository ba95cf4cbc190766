"""Python's side of the lane: publishes directories to it, retracts names, takes nodes over (see wire.lane).

Thread: the one that reads requests, and under the mount's lock whoever forgets nodes.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections import deque
from typing import TYPE_CHECKING

from overlayfs_py.overlay.faults import Fault
from overlayfs_py.overlay.handles import lower_file
from overlayfs_py.overlay.values import Caller
from overlayfs_py.wire.device import protocol
from overlayfs_py.wire.device.protocol import Opcode
from overlayfs_py.wire.lane import FIRST_ID
from overlayfs_py.wire.nodes import Counter, Record

if TYPE_CHECKING:
    from overlayfs_py.overlay.handles import FileHandle
    from overlayfs_py.overlay.node import Node
    from overlayfs_py.overlay.overlay import Overlay
    from overlayfs_py.overlay.plain import ImagePart, PlainDirectory
    from overlayfs_py.overlay.values import Entry
    from overlayfs_py.wire.device.verbs import DeviceDispatch
    from overlayfs_py.wire.lane.lane import Lane

log = logging.getLogger(__name__)

_NAMES_AT = {
    Opcode.SYMLINK: 0,
    Opcode.MKNOD: protocol.MKNOD_IN.size,
    Opcode.MKDIR: protocol.MKDIR_IN.size,
    Opcode.UNLINK: 0,
    Opcode.RMDIR: 0,
    Opcode.LINK: protocol.LINK_IN.size,
    Opcode.CREATE: protocol.CREATE_IN.size,
}
_COPIES = frozenset({Opcode.COPY_FILE_RANGE, Opcode.COPY_FILE_RANGE_64})
_COPY_TARGET_AT = 16
"""Of nodeid_out in struct fuse_copy_file_range_in."""
_ONCE = os.O_CREAT | os.O_EXCL | os.O_TRUNC
"""Flags of an open that have had their effect."""
_RENAMES = {Opcode.RENAME: protocol.RENAME_IN.size, Opcode.RENAME2: protocol.RENAME2_IN.size}
_U64 = protocol.FORGET_IN


class Laned(Counter):
    """The lane of one mount, as the table of nodes and the session see it.

    Args:
        lane: see wire.lane.
        dispatch: whose nodes and open files go over.
    """

    def __init__(self, lane: Lane, dispatch: DeviceDispatch) -> None:
        super().__init__(dispatch.first_id)
        self.lane = lane
        self._dispatch = dispatch
        self._overlay: Overlay = dispatch.overlay
        dispatch.gate.told = lane.hold
        dispatch.others = lane
        self._images: dict[int, int] = {}
        # Directories that the kernel has forgotten, and that are Python's until nothing refers to their nodes.
        self._directories: dict[int, weakref.ref[Node]] = {}
        self._dropped: deque[int] = deque()

    # The table of nodes

    def id_of(self, node: Node) -> int:
        return self.lane.claim(node.ino) or super().id_of(node)

    def entered(self, record: Record) -> None:
        if record.id >= FIRST_ID:
            lookups, backing, upper, files = self.lane.hand_over(record.id)
            record.lookups += lookups
            for file, fd, flags, uid, gid, pid in files:
                caller = Caller(uid, gid, pid)
                handle = self._handle(record.node, flags, fd, caller)
                if handle is not None:
                    self._dispatch.take_file(file, handle, record, caller, backing, upper)

    def _handle(self, node: Node, flags: int, fd: int, caller: Caller) -> FileHandle | None:
        if fd >= 0:
            return lower_file(node, flags, fd)
        try:
            return self._overlay.open(node, flags & ~_ONCE, caller)
        except OSError as error:
            log.error("%r, which is open, cannot be opened again: %s", node.name, error)
            return None

    def kept(self, record: Record) -> bool:
        return record.node.is_dir and self.lane.keep(record.id)

    def left(self, record: Record) -> None:
        node = record.node
        if node.upper:
            # Copied up since it was claimed: what the lane knows under its name is the lower object.
            for parent, name in node.names():
                id = self._dispatch.id_of(parent)
                if id is not None:
                    self.lane.retract(id, name)
        # A directory may be copied up with what is in it, as long as somebody knows that.
        self.lane.gone(node.ino, record.id, node.is_dir)
        if node.is_dir:
            ino, dropped = node.ino, self._dropped
            self._directories[ino] = weakref.ref(node, lambda _: dropped.append(ino))

    def settle(self) -> None:
        """Take note of what nobody needs any more."""
        ids = self.lane.released()
        if ids:
            with self._dispatch.lock:
                for id in ids:
                    self._dispatch.reconsider(id)
        while self._dropped:
            ino = self._dropped.popleft()
            with self._dispatch.lock:
                if self._overlay.state.nodes.get(ino) is None:
                    self._directories.pop(ino, None)
                    self.lane.give_back(ino)

    def recount(self) -> None:
        """Before a verb runs: take note of the directories that the lane made, removed or renamed."""
        if not self.lane.changed_directories:
            return
        with self._dispatch.lock:
            records = (self._dispatch.record(id) for id in self.lane.recounted())
            self._overlay.directories_changed(
                record.node for record in records if record is not None
            )

    # Before a request goes to Python, and after

    def before(self, opcode: int, node: int, body: memoryview) -> None:
        """Take over what a request is about, and retract the names that it changes."""
        self.settle()
        if node >= FIRST_ID:
            self._take_over(node)
        start = _NAMES_AT.get(opcode)  # type: ignore[call-overload]
        if start is not None:
            if opcode == Opcode.LINK and len(body) >= _U64.size:
                self._take_over(_U64.unpack_from(body)[0])
            self._retract(node, _name(body[start:]))
            if opcode == Opcode.RMDIR:
                self.lane.removing()
        elif opcode == Opcode.IOCTL:
            # A directory may be protected from now on: each is looked at again before a name in it changes.
            self.lane.moved()
        elif opcode in _COPIES and len(body) >= _COPY_TARGET_AT + _U64.size:
            self._take_over(_U64.unpack_from(body, _COPY_TARGET_AT)[0])
        elif opcode in _RENAMES:
            self._before_rename(node, body, _RENAMES[Opcode(opcode)])

    def after(self, opcode: int, node: int, body: memoryview) -> None:
        """A verb has changed names: tell the lane how many directories are where they changed."""
        if opcode in _NAMES_AT:
            self._tell_links(node)
        elif opcode in _RENAMES:
            self._tell_links(node)
            self._tell_links(_U64.unpack_from(body)[0])

    def _tell_links(self, id: int) -> None:
        with self._dispatch.lock:
            record = self._dispatch.record(id)
            links = 0 if record is None else self._overlay.links_known(record.node)
        if links:
            self.lane.set_links(id, links)

    def _before_rename(self, parent: int, body: memoryview, start: int) -> None:
        if len(body) < start:
            return
        target = _U64.unpack_from(body)[0]
        self._take_over(target)
        old, _, rest = bytes(body[start:]).partition(b"\0")
        self._retract(parent, old)
        self._retract(target, rest.partition(b"\0")[0])
        self.lane.moved()

    def _retract(self, parent: int, name: bytes) -> None:
        id = self.lane.retract(parent, name)
        if id:
            self._take_over(id)
            self.lane.retract(parent, name)

    def _take_over(self, id: int) -> None:
        """Have a node be Python's, and the directories that lead to it."""
        with self._dispatch.lock:
            chain = []
            while id >= FIRST_ID and (found := self.lane.owns(id)) is not None:
                chain.append((id, *found))
                id = found[0]
            if not chain:
                self._take_nameless(id)
            for each, parent, name, ino in reversed(chain):
                record = self._dispatch.record(parent)
                if record is None:
                    log.error("node %d in the directory %d, which is not known", each, parent)
                    self._give_up(each, ino)
                else:
                    self._take(each, record.node, name, ino)
            for each, *_ in chain:
                # The kernel may have forgotten it long ago.
                self._dispatch.reconsider(each)

    def _take_nameless(self, id: int) -> None:
        found = self.lane.nameless(id) if id >= FIRST_ID else None
        if found is None:
            return
        pin, place, ino = found
        if place is None:
            node = self._overlay.nameless_upper(pin, ino)
        elif isinstance(place[1], bytes):
            node = self._overlay.nameless_lower(place[0], place[1], ino)
        else:
            index_fd = next(fd for fd, number in self._images.items() if number == place[0])
            node = self._overlay.nameless_in_image(index_fd, place[1], ino)
        self._dispatch.enter_again(node)

    def _take(self, id: int, parent: Node, name: bytes, ino: int) -> None:
        """Under the mount's lock."""
        try:
            entry = self._lookup(parent, name)
        except OSError as error:
            log.error("%r, which the kernel knows, cannot be looked up: %s", name, error)
            entry = None
        if entry is None or entry.node.ino != ino:
            log.error("%r is not what the kernel was told", name)
            self._give_up(id, ino)
            return
        # The one lookup that `enter` counts was not told to anybody.
        self._dispatch.enter_again(entry.node)

    def _lookup(self, parent: Node, name: bytes) -> Entry | None:
        while True:
            try:
                return self._overlay.lookup(parent, name)
            except Fault as fault:
                fault.work()

    def _give_up(self, id: int, ino: int) -> None:
        for _, fd, *_ in self.lane.hand_over(id)[3]:
            if fd >= 0:
                os.close(fd)
        self.lane.gone(ino, id, False)

    # Publishing

    def publish(self, id: int, *, listing: bool, impure: bool = False) -> None:
        """Let the lane have the lookups in a directory, or its listings, where they are plain.

        Args:
            impure: it is to be marked so, for the copies that the lane will put there.
        """
        with self._dispatch.lock:
            record = self._dispatch.record(id)
            if record is not None and impure:
                self._mark_impure(record.node)
            plain = None if record is None else self._plain(record.node)
            if record is None or plain is None:
                self.lane.never(id)
            elif plain.listable or not listing:
                node = record.node
                parent = (node.parent or node).ino
                image = None if plain.image is None else self._image(plain.image)
                if plain.image is not None and image is None:
                    self.lane.never(id)
                    return
                self.lane.publish(
                    id, node.ino, parent, plain.parts, image, plain.upper, plain.listable
                )

    def _mark_impure(self, node: Node) -> None:
        try:
            self._overlay.mark_impure(node)
        except OSError as error:
            # Then it is not, and the verb meets the error.
            log.debug("%r cannot be marked impure: %s", node.name, error)

    def _image(self, part: ImagePart) -> tuple[int, int, int] | None:
        """A directory of an image as the lane has it; None if it cannot read the image."""
        number = self._images.get(part.index_fd)
        if number is None:
            number = self.lane.image(part.index_fd, part.objects_fd)
            self._images[part.index_fd] = number
        return None if number < 0 else (number, part.nid, part.position)

    def _plain(self, node: Node) -> PlainDirectory | None:
        try:
            return self._overlay.plain_directory(node)
        except OSError as error:
            log.debug("%r cannot be published: %s", node.name, error)
            return None


def _name(rest: memoryview) -> bytes:
    return bytes(rest).partition(b"\0")[0]
