"""The union without a mount: this plays the part of the kernel and of dispatch above the verbs.

It keeps dentries as the kernel does (positive and negative), checks what the VFS checks before it
asks a filesystem, runs faults inline, and forgets nodes at random.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any

from layerstore.marks import TRUSTED
from overlayfs_py.layers.directory import DirectoryLayer
from overlayfs_py.layers.upper import Upper
from overlayfs_py.overlay.config import Config
from overlayfs_py.overlay.faults import RESTARTS_MAX, Fault
from overlayfs_py.overlay.node import Node
from overlayfs_py.overlay.overlay import Overlay
from overlayfs_py.overlay.values import Attributes, Caller, Changes, DirectoryEntry
from tests.model import acl
from tests.model.layers import Layer
from tests.model.mounted import Scratch
from tests.model.observe import Dialect, Seen
from tests.model.tree import (
    CAPABILITY,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    SYMLINKS_MAX,
    fail,
)


class Dentry:
    """A name the kernel knows; `node` None: known to be absent."""

    __slots__ = ("children", "name", "node", "parent")

    def __init__(self, parent: Dentry | None, name: bytes, node: Node | None) -> None:
        self.parent = parent
        self.name = name
        self.node = node
        self.children: dict[bytes, Dentry] = {}

    @property
    def positive(self) -> Node:
        if self.node is None:
            raise fail(errno.ENOENT)
        return self.node

    def is_below(self, other: Dentry) -> bool:
        """Whether `other` is this dentry or one above it."""
        at: Dentry | None = self
        while at is not None and at is not other:
            at = at.parent
        return at is other


class OpenFile:
    """A descriptor. `handle` is the union's, None for a directory (which is opened anew to be
    listed)."""

    def __init__(self, dentry: Dentry, node: Node, flags: int, handle: Any) -> None:
        self.dentry = dentry
        self.node = node
        self.flags = flags
        self.handle = handle


def run(verb: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """A verb with its faults, as dispatch does it."""
    for _ in range(RESTARTS_MAX):
        try:
            return verb(*arguments, **named)
        except Fault as fault:
            result = fault.work()
            if fault.answer:
                return result
    raise AssertionError(f"{verb} does not progress")


class Verbs(Scratch):
    """See the module."""

    name = "verbs"
    dialect = Dialect()
    process_umask = 0
    config = Config()

    def __init__(self, scratch: bytes, stack: list[Layer], umask: int) -> None:
        super().__init__(scratch, stack)
        self.umask = umask
        self.kills_privileges = bool(len(stack) % 2)
        self.start()

    def build(self) -> Overlay:
        lowers: list[Any] = [DirectoryLayer(path, TRUSTED) for path in self.lowers]
        upper = Upper(self.upper, self.work, TRUSTED, volatile=self.config.volatile)
        return Overlay(upper, lowers, [], self.config)

    def start(self) -> None:
        self.overlay = self.build()
        self.root = Dentry(None, b"", self.overlay.root)
        self.handles: dict[int, OpenFile] = {}
        self.dead: set[Node] = set()
        self.known: set[Node] = {self.overlay.root}

    def stop(self) -> None:
        self.overlay.close()

    @property
    def caller(self) -> Caller:
        return Caller(0, 0, os.getpid(), self.umask)

    # What the kernel holds.

    def _dentries(self) -> Iterator[Dentry]:
        pending = [self.root]
        while pending:
            dentry = pending.pop()
            yield dentry
            pending.extend(dentry.children.values())

    def _release_nodes(self) -> None:
        """Send a forget for every node that no dentry and no open file refers to any more."""
        used = {file.node for file in self.handles.values()}
        for dentry in self._dentries():
            if dentry.node is not None:
                used.add(dentry.node)
        for file in self.handles.values():
            at: Dentry | None = file.dentry
            while at is not None:
                if at.node is not None:
                    used.add(at.node)
                at = at.parent
        for node in self.known - used:
            self.overlay.forget(node)
        self.known &= used
        self.dead &= used

    def forget(self, seed: int) -> None:
        """Memory pressure: most dentries go, leaves first, then the nodes that only they held."""
        chance = random.Random(seed)
        share = chance.choice([0.3, 0.9, 1.0])

        def prune(dentry: Dentry) -> None:
            for name, child in list(dentry.children.items()):
                prune(child)
                held = any(file.dentry is child for file in self.handles.values())
                if not child.children and not held and chance.random() <= share:
                    del dentry.children[name]

        prune(self.root)
        self._release_nodes()

    def remount(self) -> None:
        self.close_all()
        self.stop()
        self.start()

    def rotate(self, settle: list[bytes]) -> None:
        self.close_all()
        for path in settle:
            head = path.rpartition(b"/")[0]
            parent = self._existing(head)
            now: Attributes = run(self.overlay.getattr, parent)
            aside = head + b"/.settling" if head else b".settling"
            self.rename(path, aside, 0)
            self.rename(aside, path, 0)
            self._setattr(parent, Changes(atime_ns=now.atime_ns, mtime_ns=now.mtime_ns))
        self.stop()
        self.rotate_directories()
        self.start()

    def end(self) -> None:
        self.close_all()
        self.stop()

    def close_all(self) -> None:
        for slot in list(self.handles):
            self.close(slot)

    # Names.

    def _child(self, parent: Dentry, name: bytes) -> Dentry:
        node = parent.positive
        if not node.is_dir:
            raise fail(errno.ENOTDIR)
        if len(name) > 255:
            raise fail(errno.ENAMETOOLONG)
        dentry = parent.children.get(name)
        if dentry is None:
            if node in self.dead:
                raise fail(errno.ENOENT)
            entry = run(self.overlay.lookup, node, name)
            dentry = self._learn(parent, name, None if entry is None else entry.node)
        return dentry

    def _learn(self, parent: Dentry, name: bytes, node: Node | None) -> Dentry:
        dentry = parent.children[name] = Dentry(parent, name, node)
        if node is not None:
            self.known.add(node)
        return dentry

    def _resolve(
        self, path: bytes, follow: bool, at: Dentry | None = None, links: int = 0
    ) -> Dentry:
        """The dentry at `path`, negative if only its last name is missing."""
        at = at or self.root
        names = path.split(b"/") if path else []
        for position, name in enumerate(names):
            last = position == len(names) - 1
            child = self._child(at, name)
            if child.node is not None and stat.S_ISLNK(child.node.kind) and (follow or not last):
                if links >= SYMLINKS_MAX:
                    raise fail(errno.ELOOP)
                target: bytes = run(self.overlay.readlink, child.node)
                rest = b"/".join([target, *names[position + 1 :]])
                return self._resolve(rest, follow, at, links + 1)
            if not last and child.node is None:
                raise fail(errno.ENOENT)
            at = child
        return at

    def _vacant(self, path: bytes) -> tuple[Dentry, Node, bytes]:
        dentry = self._resolve(path, follow=False)
        if dentry.node is not None:
            raise fail(errno.EEXIST)
        assert dentry.parent is not None
        return dentry.parent, dentry.parent.positive, dentry.name

    def _existing(self, path: bytes, follow: bool = False) -> Node:
        return self._resolve(path, follow).positive

    def _gone(self, dentry: Dentry) -> None:
        """The object lost this name: the dentry goes, but open files keep theirs."""
        assert dentry.parent is not None
        node = dentry.positive
        if node.is_dir:
            self.dead.add(node)
        if dentry.parent.children.get(dentry.name) is dentry:
            del dentry.parent.children[dentry.name]
        self._learn(dentry.parent, dentry.name, None)

    def mkdir(self, path: bytes, mode: int) -> None:
        parent, node, name = self._vacant(path)
        entry = run(self.overlay.mkdir, node, name, mode & 0o1777, self.caller)
        self._learn(parent, name, entry.node)

    def mknod(self, path: bytes, mode: int, rdev: int) -> None:
        parent, node, name = self._vacant(path)
        entry = run(self.overlay.mknod, node, name, mode, rdev, self.caller)
        self._learn(parent, name, entry.node)

    def symlink(self, target: bytes, path: bytes) -> None:
        parent, node, name = self._vacant(path)
        entry = run(self.overlay.symlink, node, name, target, self.caller)
        self._learn(parent, name, entry.node)

    def link(self, old: bytes, new: bytes) -> None:
        source = self._existing(old)
        parent, node, name = self._vacant(new)
        if source.is_dir:
            raise fail(errno.EPERM)
        entry = run(self.overlay.link, source, node, name, self.caller)
        assert entry.node is source, "a second name of an inode is another node"
        self._learn(parent, name, entry.node)

    def unlink(self, path: bytes) -> None:
        dentry = self._resolve(path, follow=False)
        if dentry.positive.is_dir:
            raise fail(errno.EISDIR)
        assert dentry.parent is not None
        run(self.overlay.unlink, dentry.parent.positive, dentry.name, self.caller)
        self._gone(dentry)
        self._release_nodes()

    def rmdir(self, path: bytes) -> None:
        dentry = self._resolve(path, follow=False)
        if not dentry.positive.is_dir:
            raise fail(errno.ENOTDIR)
        assert dentry.parent is not None
        run(self.overlay.rmdir, dentry.parent.positive, dentry.name, self.caller)
        self._gone(dentry)
        self._release_nodes()

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        exchange = bool(flags & RENAME_EXCHANGE)
        if exchange and flags & (RENAME_NOREPLACE | RENAME_WHITEOUT):
            raise fail(errno.EINVAL)
        parents = []
        for path in (old, new):
            parents.append(self._resolve(path.rpartition(b"/")[0], follow=True))
            if not parents[-1].positive.is_dir:
                raise fail(errno.ENOTDIR)
        source = self._child(parents[0], old.rpartition(b"/")[2])
        moved = source.positive
        target = self._child(parents[1], new.rpartition(b"/")[2])
        if target.node is not None and flags & RENAME_NOREPLACE:
            raise fail(errno.EEXIST)
        if target.node is None and exchange:
            raise fail(errno.ENOENT)
        if parents[1].is_below(source):
            raise fail(errno.EINVAL)
        if target.node is not None and parents[0].is_below(target):
            raise fail(errno.EINVAL if exchange else errno.ENOTEMPTY)
        if target.node is moved:
            return
        if target.node is not None and not exchange:
            if moved.is_dir and not target.node.is_dir:
                raise fail(errno.ENOTDIR)
            if target.node.is_dir and not moved.is_dir:
                raise fail(errno.EISDIR)
        run(
            self.overlay.rename,
            parents[0].positive,
            source.name,
            parents[1].positive,
            target.name,
            flags,
            self.caller,
        )
        self._moved(source, target, exchange, bool(flags & RENAME_WHITEOUT))

    def _moved(self, source: Dentry, target: Dentry, exchange: bool, whiteout: bool) -> None:
        assert source.parent is not None
        assert target.parent is not None
        if target.node is not None and target.node.is_dir and not exchange:
            self.dead.add(target.node)
        old_parent, old_name = source.parent, source.name
        del old_parent.children[old_name]
        if target.parent.children.get(target.name) is target:
            del target.parent.children[target.name]
        source.parent, source.name = target.parent, target.name
        source.parent.children[source.name] = source
        if exchange:
            target.parent, target.name = old_parent, old_name
            old_parent.children[old_name] = target
        elif not whiteout:
            self._learn(old_parent, old_name, None)
        self._release_nodes()

    # Attributes.

    def look(self, path: bytes) -> int:
        return self._existing(path).kind

    def _setattr(self, node: Node, changes: Changes, handle: Any = None) -> None:
        before = node.ino
        attributes: Attributes = run(self.overlay.setattr, node, changes, self.caller, handle)
        assert attributes.ino == before == node.ino, "setattr changed st_ino"

    def chmod(self, path: bytes, mode: int) -> None:
        self._setattr(self._existing(path, follow=True), Changes(mode=mode))

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        self._set_owner(self._existing(path), uid, gid)

    def _set_owner(self, node: Node, uid: int, gid: int) -> None:
        """As a transport with killpriv v2 asks for it, which leaves the clearing to the union, or
        as one without, which clears by itself."""
        changes = Changes(uid=None if uid < 0 else uid, gid=None if gid < 0 else gid)
        if not node.is_dir and not self.kills_privileges:
            with contextlib.suppress(OSError):
                run(self.overlay.removexattr, node, CAPABILITY, self.caller)
            mode = run(self.overlay.getattr, node).mode
            kept = mode & ~(stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0))
            changes = replace(changes, mode=None if kept == mode else kept)
            if changes == Changes():
                return
        self._setattr(node, changes)

    def utimens(self, path: bytes, atime_ns: int, mtime_ns: int) -> None:
        self._setattr(self._existing(path), Changes(atime_ns=atime_ns, mtime_ns=mtime_ns))

    def truncate(self, path: bytes, size: int) -> None:
        node = self._existing(path, follow=True)
        if node.is_dir:
            raise fail(errno.EISDIR)
        if not stat.S_ISREG(node.kind):
            raise fail(errno.EINVAL)
        self._setattr(node, Changes(size=size))

    def _check_xattr(self, node: Node, name: bytes) -> None:
        if name.startswith(b"user.") and not (node.is_dir or stat.S_ISREG(node.kind)):
            raise fail(errno.EPERM)
        if name in (acl.ACCESS, acl.DEFAULT) and stat.S_ISLNK(node.kind):
            raise fail(errno.EOPNOTSUPP)
        if name == acl.DEFAULT and not node.is_dir:
            raise fail(errno.EACCES)

    def _set_xattr(self, node: Node, name: bytes, value: bytes, flags: int) -> None:
        self._check_xattr(node, name)
        run(self.overlay.setxattr, node, name, value, flags, self.caller)

    def _remove_xattr(self, node: Node, name: bytes) -> None:
        self._check_xattr(node, name)
        run(self.overlay.removexattr, node, name, self.caller)

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        self._set_xattr(self._existing(path), name, value, flags)

    def removexattr(self, path: bytes, name: bytes) -> None:
        self._remove_xattr(self._existing(path), name)

    # Open files.

    def _open(self, path: bytes, flags: int, mode: int) -> OpenFile:
        exclusive = flags & os.O_CREAT and flags & os.O_EXCL
        dentry = self._resolve(path, follow=not flags & os.O_NOFOLLOW and not exclusive)
        if dentry.node is None and flags & os.O_CREAT:
            assert dentry.parent is not None
            parent = dentry.parent.positive
            entry, handle = run(
                self.overlay.create, parent, dentry.name, flags & ~os.O_CREAT, mode, self.caller
            )
            dentry = self._learn(dentry.parent, dentry.name, entry.node)
            return OpenFile(dentry, entry.node, flags, handle)
        node = dentry.positive
        if exclusive:
            raise fail(errno.EEXIST)
        if stat.S_ISLNK(node.kind):
            raise fail(errno.ENOTDIR if flags & os.O_DIRECTORY else errno.ELOOP)
        if flags & os.O_DIRECTORY and not node.is_dir:
            raise fail(errno.ENOTDIR)
        if node.is_dir:
            if flags & (os.O_ACCMODE | os.O_CREAT):
                raise fail(errno.EISDIR)
            return OpenFile(dentry, node, flags, None)
        if stat.S_ISSOCK(node.kind):
            raise fail(errno.ENXIO)
        handle = run(self.overlay.open, node, flags & ~(os.O_CREAT | os.O_EXCL), self.caller)
        return OpenFile(dentry, node, flags, handle)

    def open(self, slot: int, path: bytes, flags: int, mode: int) -> None:
        file = self._open(path, flags, mode)
        if slot in self.handles:
            self.close(slot)
        self.handles[slot] = file

    def close(self, slot: int) -> None:
        self._close(self.handles.pop(slot))
        self._release_nodes()

    def _close(self, file: OpenFile) -> None:
        if file.handle is not None:
            run(self.overlay.flush, file.handle)
            run(self.overlay.release, file.handle)

    def _writable(self, file: OpenFile, error: int) -> None:
        if file.node.is_dir or not file.flags & os.O_ACCMODE:
            raise fail(error)

    def pread(self, slot: int, offset: int, size: int) -> bytes:
        file = self.handles[slot]
        if file.flags & os.O_ACCMODE == os.O_WRONLY:
            raise fail(errno.EBADF)
        if file.node.is_dir:
            raise fail(errno.EISDIR)
        return bytes(run(self.overlay.read, file.handle, offset, size))

    def pwrite(self, slot: int, offset: int, data: bytes) -> int:
        file = self.handles[slot]
        self._writable(file, errno.EBADF)
        return self._write(file, offset, data)

    def _write(self, file: OpenFile, offset: int, data: bytes) -> int:
        if file.flags & os.O_APPEND:
            offset = run(self.overlay.getattr, file.node, file.handle).size
        if not data:
            return 0
        written: int = run(self.overlay.write, file.handle, offset, data, self.caller)
        return written

    def write(self, path: bytes, offset: int, data: bytes) -> int:
        append = os.O_APPEND if offset < 0 else 0
        file = self._open(path, os.O_WRONLY | append, 0)
        try:
            return self._write(file, max(offset, 0), data)
        finally:
            self._close(file)

    def ftruncate(self, slot: int, size: int) -> None:
        file = self.handles[slot]
        self._writable(file, errno.EINVAL)
        self._setattr(file.node, Changes(size=size), file.handle)

    def fchmod(self, slot: int, mode: int) -> None:
        self._setattr(self.handles[slot].node, Changes(mode=mode))

    def fchown(self, slot: int, uid: int, gid: int) -> None:
        self._set_owner(self.handles[slot].node, uid, gid)

    def futimens(self, slot: int, atime_ns: int, mtime_ns: int) -> None:
        self._setattr(self.handles[slot].node, Changes(atime_ns=atime_ns, mtime_ns=mtime_ns))

    def fsetxattr(self, slot: int, name: bytes, value: bytes, flags: int) -> None:
        self._set_xattr(self.handles[slot].node, name, value, flags)

    def fremovexattr(self, slot: int, name: bytes) -> None:
        self._remove_xattr(self.handles[slot].node, name)

    def fsync(self, slot: int) -> None:
        file = self.handles[slot]
        if file.handle is not None:
            run(self.overlay.fsync, file.handle, False)

    def create_at(self, slot: int, name: bytes, mode: int) -> None:
        file = self.handles[slot]
        if not file.node.is_dir:
            raise fail(errno.ENOTDIR)
        if file.node in self.dead:
            raise fail(errno.ENOENT)
        if self._child(file.dentry, name).node is not None:
            raise fail(errno.EEXIST)
        flags = os.O_WRONLY | os.O_EXCL
        entry, handle = run(self.overlay.create, file.node, name, flags, mode, self.caller)
        self._learn(file.dentry, name, entry.node)
        run(self.overlay.release, handle)

    # Looking at all of it.

    def observe(self) -> tuple[dict[bytes, Seen], dict[int, Seen]]:
        held = {slot: self._seen(file.node, file) for slot, file in self.handles.items()}
        seen: dict[bytes, Seen] = {}
        pending = [(b"", self.root)]
        while pending:
            path, dentry = pending.pop()
            row = seen[path] = self._seen(dentry.positive, None)
            for name, *_ in row.listing or ():
                below = path + b"/" + name if path else name
                pending.append((below, self._child(dentry, name)))
        return seen, held

    def glance(
        self, paths: Iterable[bytes], closely: Collection[bytes], slot: int | None
    ) -> tuple[dict[bytes, Seen], dict[int, Seen]]:
        """Attributes of everything; more of the paths `closely` and of the descriptor `slot`."""
        held = {
            number: self._seen(file.node, file) if number == slot else self._attributes(file.node)
            for number, file in self.handles.items()
        }
        seen: dict[bytes, Seen] = {}
        for path in paths:
            node = self._resolve(path, follow=False).node
            if node is not None:
                seen[path] = self._seen(node, None) if path in closely else self._attributes(node)
        return seen, held

    def _attributes(self, node: Node) -> Seen:
        row: Attributes = run(self.overlay.getattr, node)
        return Seen(
            row.mode,
            row.uid,
            row.gid,
            row.nlink,
            row.ino,
            row.rdev,
            row.size,
            row.mtime_ns,
            None,
            None,
            None,
            None,
        )

    def _seen(self, node: Node, file: OpenFile | None) -> Seen:
        row = self._attributes(node)
        assert stat.S_IFMT(row.mode) == node.kind, "the node and its attributes disagree"
        content = target = b""
        listing: list[tuple[bytes, int, int | None]] = []
        if node.is_dir:
            if node not in self.dead:
                listing = [(each.name, each.ino, each.type) for each in self._list(node)]
        elif stat.S_ISLNK(node.kind):
            target = run(self.overlay.readlink, node)
        elif stat.S_ISREG(node.kind):
            content = self._content(node, file)
        xattrs = {
            name: bytes(run(self.overlay.getxattr, node, name))
            for name in run(self.overlay.listxattr, node)
        }
        return row._replace(target=target, content=content, xattrs=xattrs, listing=listing)

    def _content(self, node: Node, file: OpenFile | None) -> bytes:
        if file is not None and file.flags & os.O_ACCMODE == os.O_WRONLY:
            return b""
        handle = file.handle if file else run(self.overlay.open, node, os.O_RDONLY, self.caller)
        parts = []
        offset = 0
        while part := run(self.overlay.read, handle, offset, 1 << 17):
            parts.append(bytes(part))
            offset += len(part)
        if file is None:
            run(self.overlay.release, handle)
        return b"".join(parts)

    def _list(self, node: Node) -> list[DirectoryEntry]:
        """A whole listing, a few rows for each request, as a small buffer makes them."""
        handle = run(self.overlay.opendir, node)
        rows: list[DirectoryEntry] = []
        offset = 0
        while True:
            some = []
            for row in run(self.overlay.readdir, handle, offset):
                some.append(row)
                if len(some) == 5:
                    break
            if not some:
                break
            rows += some
            offset = some[-1].offset
        run(self.overlay.releasedir, handle)
        assert [row.name for row in rows[:2]] == [b".", b".."]
        assert rows[0].ino == node.ino, "'.' has another number than the directory"
        return rows[2:]
