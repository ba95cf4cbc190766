"""The union: one short method per verb.

Every verb is synchronous and short; what may take long it asks for with `Fault`. A verb changes nothing before its
last possible fault, so that it can be started again from the top. One verb at a time per union, on any thread.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from overlayfs_py import syscalls
from overlayfs_py.errors import OverlayError
from overlayfs_py.layers.content import FileContent
from overlayfs_py.layers.layer import Layer
from overlayfs_py.layers.upper import Upper
from overlayfs_py.overlay import (
    attributes,
    change,
    create,
    fileattr,
    handles,
    index,
    plain,
    protection,
    remove,
)
from overlayfs_py.overlay import rename as renaming
from overlayfs_py.overlay.config import Config
from overlayfs_py.overlay.copy_up import copy_up, set_impure, writable
from overlayfs_py.overlay.faults import Fault
from overlayfs_py.overlay.handles import DirectoryHandle, FileHandle
from overlayfs_py.overlay.lookup import adopt, new_node, resolve
from overlayfs_py.overlay.node import Lower, Node
from overlayfs_py.overlay.staged import StagedData
from overlayfs_py.overlay.state import State
from overlayfs_py.overlay.values import Attributes, Caller, Changes, DirectoryEntry, Entry

T = TypeVar("T")


class Overlay:
    """A union of layers; every verb raises OSError with the errno for the caller, or Fault.

    Args:
        upper: the writable layer, None for a read-only union.
        lowers: read-only layers, top first; at least one unless there is an upper.
        data_lowers: layers that only metacopy redirects lead to.
        config: what the mount options say.
    """

    def __init__(
        self,
        upper: Upper | None,
        lowers: list[Layer],
        data_lowers: list[Layer],
        config: Config,
    ) -> None:
        # Modes come with the umask applied, or with one of the caller's.
        os.umask(0)
        self.state = State(upper, lowers, data_lowers, config)
        index.prepare(self.state, Lower(lowers[0], lowers[0].root()) if lowers else None)

    @property
    def root(self) -> Node:
        return self.state.root

    @property
    def attributes_changed(self) -> Callable[[Node], None]:
        """Called with a node whose attributes changed beside the reply; the transport sets it."""
        return self.state.attributes_changed

    @attributes_changed.setter
    def attributes_changed(self, hook: Callable[[Node], None]) -> None:
        self.state.attributes_changed = hook

    # --- names -------------------------------------------------------------------------------------------------------

    def lookup(self, parent: Node, name: bytes) -> Entry | None:
        """The entry `name` of a directory; None if it is certainly absent."""
        found = resolve(self.state, parent, name)
        if found is None:
            return None
        node = adopt(self.state, parent, name, found)
        return Entry(node, attributes.of_lookup(self.state, node, found.status))

    def _entry(self, parent: Node, name: bytes) -> Entry:
        entry = self.lookup(parent, name)
        if entry is None:
            raise OverlayError(errno.ENOENT)
        return entry

    def _made(self, parent: Node, name: bytes) -> Entry:
        upper = self.state.upper
        assert upper is not None
        return self._new(parent, name, upper.tree.stat(self.state.child_path(parent, name)))

    def _new(self, parent: Node | None, name: bytes, status: os.stat_result) -> Entry:
        """The entry of an object that was just made in the upper."""
        node = new_node(self.state, parent, name, status)
        if self.state.upper is not None and self.state.upper.override is not None:
            return Entry(node, self.getattr(node))
        return Entry(node, attributes.attributes(self.state, node, status))

    def mknod(self, parent: Node, name: bytes, mode: int, rdev: int, caller: Caller) -> Entry:
        self._may_make(parent)
        create.make(self.state, parent, name, create.New(mode, rdev), caller)
        return self._entry(parent, name)

    def mkdir(self, parent: Node, name: bytes, mode: int, caller: Caller) -> Entry:
        self._may_make(parent)
        new = create.New(stat.S_IFDIR | stat.S_IMODE(mode))
        create.make(self.state, parent, name, new, caller)
        if parent.subdirectories is not None:
            parent.subdirectories += 1
        entry = self._made(parent, name)
        entry.node.oci_names = False
        return entry

    def symlink(self, parent: Node, name: bytes, target: bytes, caller: Caller) -> Entry:
        self._may_make(parent)
        new = create.New(stat.S_IFLNK | 0o777, target=target)
        create.make(self.state, parent, name, new, caller)
        return self._made(parent, name)

    def link(self, node: Node, parent: Node, name: bytes, caller: Caller) -> Entry:
        self._may_make(parent)
        if self.state.protected:
            protection.check_object(self.state, node)
        create.link(self.state, node, parent, name)
        return Entry(node, attributes.attributes(self.state, node))

    def unlink(self, parent: Node, name: bytes, caller: Caller) -> None:
        self._may_remove(parent, name)
        remove.unlink(self.state, parent, name)

    def rmdir(self, parent: Node, name: bytes, caller: Caller) -> None:
        self._may_remove(parent, name)
        remove.rmdir(self.state, parent, name)

    def rename(
        self,
        parent: Node,
        name: bytes,
        new_parent: Node,
        new_name: bytes,
        flags: int,
        caller: Caller,
    ) -> None:
        self._may_remove(parent, name)
        self._may_make(new_parent)
        self._may_remove(new_parent, new_name, only_if_there=True)
        old, new = renaming.Name(parent, name), renaming.Name(new_parent, new_name)
        renaming.rename(self.state, old, new, flags, caller)

    def _may_make(self, parent: Node) -> None:
        if not parent.is_dir:
            raise OverlayError(errno.ENOTDIR)
        if self.state.protected:
            protection.check_directory(self.state, parent)

    def _may_remove(self, parent: Node, name: bytes, *, only_if_there: bool = False) -> None:
        if not parent.is_dir:
            raise OverlayError(errno.ENOTDIR)
        if not self.state.protected:
            return
        entry = self.lookup(parent, name)
        if entry is not None:
            protection.check_object(self.state, entry.node)
        if entry is not None or not only_if_there:
            protection.check_directory(self.state, parent, removes=True)

    # --- inodes ------------------------------------------------------------------------------------------------------

    def getattr(self, node: Node, handle: FileHandle | None = None) -> Attributes:
        return attributes.attributes(self.state, node)

    def setattr(
        self, node: Node, changes: Changes, caller: Caller, handle: FileHandle | None = None
    ) -> Attributes:
        if self.state.protected:
            protection.check_change(self.state, node, changes)
        change.setattr(self.state, node, changes, caller, handle)
        return attributes.attributes(self.state, node)

    def birth_ns(self, node: Node) -> int | None:
        """When the object that stands for the node was made, None if that is not known."""
        place = fileattr.real_place(self.state, node)
        return None if place is None else place.birth_ns()

    def ioctl(self, node: Node, command: int, data: bytes) -> bytes:
        """The flags of chattr(1)."""
        return fileattr.ioctl(self.state, node, command, data)

    def readlink(self, node: Node) -> bytes:
        if node.kind != stat.S_IFLNK:
            raise OverlayError(errno.EINVAL)
        if node.upper:
            return self.state.place(node).readlink()
        layer, ref = node.lowers[0]
        return layer.readlink(ref)

    def getxattr(self, node: Node, name: bytes) -> bytes:
        return change.getxattr(self.state, node, name)

    def listxattr(self, node: Node, caller: Caller | None = None) -> list[bytes]:
        return change.listxattr(self.state, node, caller)

    def setxattr(self, node: Node, name: bytes, value: bytes, flags: int, caller: Caller) -> None:
        if self.state.protected:
            protection.check_object(self.state, node)
        change.setxattr(self.state, node, name, value, flags, caller)

    def removexattr(self, node: Node, name: bytes, caller: Caller) -> None:
        if self.state.protected:
            protection.check_object(self.state, node)
        change.removexattr(self.state, node, name)

    # --- files -------------------------------------------------------------------------------------------------------

    def open(self, node: Node, flags: int, caller: Caller) -> FileHandle:
        if self.state.protected:
            protection.check_open(self.state, node, flags)
        return handles.open_file(self.state, node, flags, caller)

    def create(
        self, parent: Node, name: bytes, flags: int, mode: int, caller: Caller
    ) -> tuple[Entry, FileHandle]:
        """open(2) with O_CREAT: the existing file unless O_EXCL, else a new one."""
        if not flags & os.O_EXCL:
            entry = self.lookup(parent, name)
            if entry is not None:
                handle = self.open(entry.node, flags & ~os.O_CREAT, caller)
                return Entry(entry.node, self.getattr(entry.node)), handle
        self._may_make(parent)
        fd = create.make_open(self.state, parent, name, _kept(flags), mode, caller)
        try:
            entry = self._new(parent, name, os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
        return entry, FileHandle(entry.node, flags, FileContent(fd), True)

    def tmpfile(
        self, parent: Node, flags: int, mode: int, caller: Caller
    ) -> tuple[Entry, FileHandle]:
        """open(2) with O_TMPFILE; `link` gives the file its first name."""
        self._may_make(parent)
        fd = create.make_nameless(self.state, parent, mode, caller)
        try:
            entry = self._new(None, b"", os.fstat(fd))
            entry.node.pin = os.dup(fd)
        except BaseException:
            os.close(fd)
            raise
        return entry, FileHandle(entry.node, flags, FileContent(fd), True)

    def read(self, handle: FileHandle, offset: int, size: int) -> bytes:
        return handles.read(self.state, handle, offset, size)

    def read_into(self, handle: FileHandle, offset: int, buffer: memoryview) -> int | None:
        """`read` into a buffer; returns how much there was, None if only `read` can tell."""
        return handles.read_into(self.state, handle, offset, buffer)

    def write(
        self, handle: FileHandle, offset: int, data: bytes, caller: Caller | None = None
    ) -> int:
        return handles.write(self.state, handle, offset, data, caller)

    def flush(self, handle: FileHandle) -> None:
        """Called at every close(2); nothing is held back here."""

    def fsync(self, handle: FileHandle, datasync: bool) -> None:
        handles.fsync(self.state, handle, datasync)

    def release(self, handle: FileHandle) -> None:
        handle.close()

    def fallocate(
        self, handle: FileHandle, mode: int, offset: int, length: int, caller: Caller
    ) -> None:
        if self.state.protected:
            protection.check_fallocate(self.state, handle.node, mode)
        handles.fallocate(self.state, handle, mode, offset, length, caller)

    def seek(self, handle: FileHandle, offset: int, whence: int) -> int:
        return handles.seek(self.state, handle, offset, whence)

    def copy_file_range(
        self,
        source: FileHandle,
        source_offset: int,
        target: FileHandle,
        target_offset: int,
        length: int,
        caller: Caller,
    ) -> int:
        if self.state.protected:
            protection.check_copy(self.state, target.node)
        return handles.copy_file_range(
            self.state, source, source_offset, target, target_offset, length, caller
        )

    # --- directories -------------------------------------------------------------------------------------------------

    def opendir(self, node: Node) -> DirectoryHandle:
        if not node.is_dir:
            raise OverlayError(errno.ENOTDIR)
        return DirectoryHandle(node)

    def readdir(self, handle: DirectoryHandle, offset: int) -> Iterator[DirectoryEntry]:
        return handles.readdir(self.state, handle, offset)

    def readdirplus(
        self,
        handle: DirectoryHandle,
        offset: int,
        known: Callable[[bytes], T | None] = lambda _name: None,
    ) -> Iterator[tuple[DirectoryEntry, Entry | T | None]]:
        return handles.readdirplus(self.state, handle, offset, known)

    def plain_directory(self, node: Node) -> plain.PlainDirectory | None:
        """What of a directory can be looked up without a verb; None if nothing."""
        return plain.plain_directory(self.state, node)

    @property
    def changes_plainly(self) -> bool:
        """Whether plain changes in the upper can be made without a verb."""
        return plain.changes_plainly(self.state)

    @property
    def plain_copies(self) -> plain.PlainCopies | None:
        """See plain.plain_copies."""
        return plain.plain_copies(self.state)

    def mark_impure(self, node: Node) -> None:
        """Say that an upper directory is about to have files that were copied up."""
        if node.upper:
            set_impure(self.state, writable(self.state), node)

    def directories_changed(self, parents: Iterable[Node]) -> None:
        """Directories in `parents` came or went by no verb."""
        for parent in parents:
            parent.subdirectories = None
        if self.state.upper is not None:
            self.state.upper.tree.forget_steps()

    def links_known(self, node: Node) -> int:
        """st_nlink of a directory if no layer needs to be asked, else 0."""
        return attributes.links_known(self.state, node)

    def nameless_upper(self, pin: int, ino: int) -> Node:
        """See plain.nameless_upper."""
        return plain.nameless_upper(self.state, pin, ino)

    def nameless_lower(self, root_fd: int, path: bytes, ino: int) -> Node:
        """See plain.nameless_lower."""
        return plain.nameless_lower(self.state, plain.below(self.state, root_fd, path), ino)

    def nameless_in_image(self, index_fd: int, nid: int, ino: int) -> Node:
        """See plain.nameless_lower."""
        return plain.nameless_lower(self.state, plain.in_image(self.state, index_fd, nid), ino)

    def releasedir(self, handle: DirectoryHandle) -> None:
        handle.listing = None

    def fsyncdir(self, handle: DirectoryHandle, datasync: bool) -> None:
        node = handle.node
        if not (node.upper and self.state.syncs):
            return
        fd = self.state.place(node).open(os.O_RDONLY | os.O_DIRECTORY)

        def work() -> None:
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

        raise Fault(work, answer=True)

    # --- the whole ---------------------------------------------------------------------------------------------------

    @property
    def statfs_fd(self) -> int:
        """A descriptor on the filesystem that `statfs` tells of."""
        layer: Layer = self.state.upper or self.state.lowers[0]
        return layer.statfs_fd

    def statfs(self) -> os.statvfs_result:
        return os.fstatvfs(self.statfs_fd)

    def copy_up(self, node: Node) -> None:
        """Copy an object up without changing it."""
        copy_up(self.state, node)

    def forget(self, node: Node) -> None:
        """Nobody outside refers to the node any more; it goes when nothing inside does."""
        if isinstance(node.staged, StagedData):
            node.staged.drop()
            node.staged = None

    def sync(self) -> None:
        """Write everything of the upper's filesystem to its disk; blocks, so call it from a worker thread."""
        upper = self.state.upper
        if upper is not None and self.state.config.fsync:
            syscalls.syncfs(upper.tree.fd)

    def close(self) -> None:
        """The end of a clean unmount, after the last verb."""
        upper = self.state.upper
        if upper is not None and self.state.config.volatile:
            self.sync()
            upper.finish_volatile()
        self.state.close()


def _kept(flags: int) -> int:
    return flags & (os.O_SYNC | os.O_DSYNC)
