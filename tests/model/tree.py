"""The reference model: one POSIX tree in memory, with Linux's errors in Linux's order.

Every public method named in `OPERATIONS` is an operation: it returns plain data or raises
OSError. The model acts as root. Inodes have numbers of their own; a subject's st_ino is compared
by identity, never by value.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.model import acl

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
NAME_MAX = 255
SYMLINKS_MAX = 40
XATTR_CREATE, XATTR_REPLACE = 1, 2
CAPABILITY = b"security.capability"
CLOCK_SLACK_NS = 50_000_000
"""Linux stamps files with a coarse clock: up to a tick behind."""

OPERATIONS = frozenset(
    [
        "open",
        "close",
        "pread",
        "pwrite",
        "ftruncate",
        "fchmod",
        "fchown",
        "futimens",
        "fsetxattr",
        "fremovexattr",
        "fsync",
        "create_at",
        "write",
        "truncate",
        "mkdir",
        "symlink",
        "mknod",
        "link",
        "rename",
        "unlink",
        "rmdir",
        "chmod",
        "chown",
        "utimens",
        "setxattr",
        "removexattr",
        "look",
    ]
)
"""Operations that every subject carries out; `forget`, `remount` and `rotate` are the subject's
own."""


class Unpredicted(Exception):
    """The model does not say what this operation does (opening a device, say); nobody carries it
    out."""


@dataclass(slots=True)
class Times:
    """What is known of a time stamp: it lies between `low` and `high` nanoseconds (None: up to
    now)."""

    low: int
    high: int | None

    @staticmethod
    def exactly(ns: int) -> Times:
        return Times(ns, ns)

    def allows(self, ns: int, now_ns: int) -> bool:
        return self.low <= ns <= (now_ns if self.high is None else self.high)


@dataclass(slots=True, eq=False)
class Inode:
    """A file of any type. `hidden_links` are names in lower layers that the stack hides, which a
    union counts in st_nlink since it cannot know without reading every layer whole; `was_linked`:
    had a second name at some time."""

    number: int
    mode: int
    uid: int
    gid: int
    mtime: Times
    atime: Times
    rdev: int = 0
    content: bytearray = field(default_factory=bytearray)
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    children: dict[bytes, Inode] = field(default_factory=dict)
    links: int = 0
    hidden_links: int = 0
    was_linked: bool = False
    parent: Inode | None = None

    @property
    def type(self) -> int:
        return stat.S_IFMT(self.mode)

    @property
    def is_directory(self) -> bool:
        return self.type == stat.S_IFDIR

    @property
    def nlink(self) -> int:
        if self.is_directory:
            return (
                0
                if self.parent is None
                else 2 + sum(c.is_directory for c in self.children.values())
            )
        return self.links + self.hidden_links

    @property
    def size(self) -> int:
        return len(self.target) if self.type == stat.S_IFLNK else len(self.content)

    def drop_privileges(self, *, ids: bool = False) -> None:
        """What a write takes away even from root (capabilities), and chown too (`ids`: setuid and
        setgid)."""
        self.xattrs.pop(CAPABILITY, None)
        if ids:
            group = stat.S_ISGID if self.mode & 0o010 else 0
            self.mode &= ~(stat.S_ISUID | group)


@dataclass(slots=True)
class Handle:
    inode: Inode
    flags: int

    @property
    def readable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY


def fail(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Tree:
    """See the module. `clock_ns` is set by whoever runs operations, before each."""

    def __init__(self, umask: int = 0) -> None:
        self.umask = umask
        self.clock_ns = 0
        self.handles: dict[int, Handle] = {}
        self._numbers = 0
        self.root = self.new_inode(stat.S_IFDIR | 0o755)
        self.root.parent = self.root

    # What others ask the model.

    def new_inode(self, mode: int, uid: int = 0, gid: int = 0, rdev: int = 0) -> Inode:
        self._numbers += 1
        now = self._now()
        return Inode(self._numbers, mode, uid, gid, now, now, rdev)

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """Every path with its inode, parents first, the root as b""."""
        pending: list[tuple[bytes, Inode]] = [(b"", self.root)]
        while pending:
            path, inode = pending.pop()
            yield path, inode
            for name, child in inode.children.items():
                pending.append((path + b"/" + name if path else name, child))

    def find(self, path: bytes) -> Inode | None:
        """The inode at `path`, symlinks not followed; None if there is none."""
        try:
            return self._resolve(path, follow=False)[2]
        except OSError:
            return None

    # Paths.

    def _now(self) -> Times:
        return Times(self.clock_ns - CLOCK_SLACK_NS, None)

    def _resolve(
        self, path: bytes, follow: bool, start: Inode | None = None, links: int = 0
    ) -> tuple[Inode, bytes, Inode | None]:
        """(parent, last name, inode or None); the root is (root, b"", root)."""
        directory = start or self.root
        if not path:
            return directory, b"", directory
        names = path.split(b"/")
        for position, name in enumerate(names):
            if not directory.is_directory:
                raise fail(errno.ENOTDIR)
            if len(name) > NAME_MAX:
                raise fail(errno.ENAMETOOLONG)
            inode = directory.children.get(name)
            last = position == len(names) - 1
            if inode is not None and inode.type == stat.S_IFLNK and (follow or not last):
                if links >= SYMLINKS_MAX:
                    raise fail(errno.ELOOP)
                if inode.target.startswith(b"/") or b".." in inode.target.split(b"/"):
                    raise Unpredicted("a symlink that may leave the tree")
                rest = b"/".join([inode.target, *names[position + 1 :]])
                return self._resolve(rest, follow, directory, links + 1)
            if last:
                return directory, name, inode
            if inode is None:
                raise fail(errno.ENOENT)
            directory = inode
        raise AssertionError("unreachable")

    def _existing(self, path: bytes, follow: bool = False) -> Inode:
        inode = self._resolve(path, follow)[2]
        if inode is None:
            raise fail(errno.ENOENT)
        return inode

    def _vacant(self, path: bytes) -> tuple[Inode, bytes]:
        parent, name, inode = self._resolve(path, follow=False)
        if inode is not None:
            raise fail(errno.EEXIST)
        return parent, name

    # Directories.

    def _touch(self, *inodes: Inode) -> None:
        for inode in inodes:
            inode.mtime = self._now()

    def _may_touch(self, inode: Inode) -> None:
        """What updates mtime on some filesystems only."""
        known = inode.mtime
        later = known.high is not None and known.high > self.clock_ns
        inode.mtime = Times(min(known.low, self._now().low), known.high if later else None)

    def _attach(self, parent: Inode, name: bytes, inode: Inode) -> None:
        parent.children[name] = inode
        inode.links += 1
        inode.was_linked |= inode.links > 1
        if inode.is_directory:
            inode.parent = parent

    def _detach(self, parent: Inode, name: bytes) -> Inode:
        inode = parent.children.pop(name)
        inode.links -= 1
        if inode.is_directory:
            inode.parent = None
        return inode

    def _make(self, parent: Inode, name: bytes, mode: int, rdev: int = 0) -> Inode:
        if parent.parent is None:
            raise fail(errno.ENOENT)
        kind = stat.S_IFMT(mode)
        inode = self.new_inode(mode, rdev=rdev)
        if parent.mode & stat.S_ISGID:
            inode.gid = parent.gid
            if kind == stat.S_IFDIR:
                inode.mode |= stat.S_ISGID
        default = parent.xattrs.get(acl.DEFAULT)
        if kind != stat.S_IFLNK:
            if default is None:
                inode.mode &= ~self.umask
            else:
                access, inode.mode = acl.inherit(acl.decode(default), inode.mode)
                if access is not None:
                    inode.xattrs[acl.ACCESS] = acl.encode(access)
                if kind == stat.S_IFDIR:
                    inode.xattrs[acl.DEFAULT] = default
        self._attach(parent, name, inode)
        self._touch(parent)
        return inode

    def mkdir(self, path: bytes, mode: int) -> None:
        self._make(*self._vacant(path), stat.S_IFDIR | mode & 0o1777)

    def mknod(self, path: bytes, mode: int, rdev: int) -> None:
        self._make(*self._vacant(path), mode, rdev)

    def symlink(self, target: bytes, path: bytes) -> None:
        self._make(*self._vacant(path), stat.S_IFLNK | 0o777).target = target

    def link(self, old: bytes, new: bytes) -> None:
        inode = self._existing(old)
        parent, name = self._vacant(new)
        if inode.is_directory:
            raise fail(errno.EPERM)
        self._attach(parent, name, inode)
        self._touch(parent)

    def unlink(self, path: bytes) -> None:
        parent, name, inode = self._resolve(path, follow=False)
        if inode is None:
            raise fail(errno.ENOENT)
        if inode.is_directory:
            raise fail(errno.EISDIR)
        self._detach(parent, name)
        self._touch(parent)

    def rmdir(self, path: bytes) -> None:
        parent, name, inode = self._resolve(path, follow=False)
        if inode is None:
            raise fail(errno.ENOENT)
        if not inode.is_directory:
            raise fail(errno.ENOTDIR)
        if inode.children:
            raise fail(errno.ENOTEMPTY)
        self._detach(parent, name)
        self._touch(parent)

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        exchange = bool(flags & RENAME_EXCHANGE)
        if exchange and flags & (RENAME_NOREPLACE | RENAME_WHITEOUT):
            raise fail(errno.EINVAL)
        old_parent, old_name, source = self._resolve_parent(old)
        new_parent, new_name, target = self._resolve_parent(new)
        if len(old_name) > NAME_MAX:
            raise fail(errno.ENAMETOOLONG)
        if source is None:
            raise fail(errno.ENOENT)
        if len(new_name) > NAME_MAX:
            raise fail(errno.ENAMETOOLONG)
        if target is not None and flags & RENAME_NOREPLACE:
            raise fail(errno.EEXIST)
        if target is None and exchange:
            raise fail(errno.ENOENT)
        if source in self._ancestry(new_parent):
            raise fail(errno.EINVAL)
        if target is not None and target in self._ancestry(old_parent):
            raise fail(errno.EINVAL if exchange else errno.ENOTEMPTY)
        if source is target:
            return
        if target is not None and not exchange:
            if source.is_directory and not target.is_directory:
                raise fail(errno.ENOTDIR)
            if target.is_directory and not source.is_directory:
                raise fail(errno.EISDIR)
            if target.children:
                raise fail(errno.ENOTEMPTY)
        self._detach(old_parent, old_name)
        if target is not None:
            self._detach(new_parent, new_name)
        if exchange:
            assert target is not None
            self._attach(old_parent, old_name, target)
        self._attach(new_parent, new_name, source)
        if flags & RENAME_WHITEOUT:
            self._make(old_parent, old_name, stat.S_IFCHR)
        for inode in (source, target):
            if (
                exchange
                and inode is not None
                and inode.is_directory
                and old_parent is not new_parent
            ):
                self._may_touch(inode)  # XFS does
        self._touch(old_parent, new_parent)

    def _resolve_parent(self, path: bytes) -> tuple[Inode, bytes, Inode | None]:
        """As `_resolve`, but the last name's length is not looked at: rename(2) finds both
        parents first."""
        head, _, name = path.rpartition(b"/")
        parent = self._existing(head, follow=True)
        if not parent.is_directory:
            raise fail(errno.ENOTDIR)
        return parent, name, parent.children.get(name)

    def _ancestry(self, inode: Inode) -> Iterator[Inode]:
        while True:
            yield inode
            if inode is self.root or inode.parent is None:
                return
            inode = inode.parent

    # Attributes.

    def look(self, path: bytes) -> int:
        """lstat(2), for what it leaves in caches; returns the type."""
        return self._existing(path).type

    def _set_mode(self, inode: Inode, mode: int) -> None:
        inode.mode = inode.type | mode & 0o7777
        if acl.ACCESS in inode.xattrs:
            entries = acl.chmod(acl.decode(inode.xattrs[acl.ACCESS]), mode)
            inode.xattrs[acl.ACCESS] = acl.encode(entries)

    def _set_owner(self, inode: Inode, uid: int, gid: int) -> None:
        if not inode.is_directory:
            inode.drop_privileges(ids=True)
        inode.uid = inode.uid if uid < 0 else uid
        inode.gid = inode.gid if gid < 0 else gid

    def _set_times(self, inode: Inode, atime_ns: int, mtime_ns: int) -> None:
        inode.atime, inode.mtime = Times.exactly(atime_ns), Times.exactly(mtime_ns)

    def chmod(self, path: bytes, mode: int) -> None:
        self._set_mode(self._existing(path, follow=True), mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        self._set_owner(self._existing(path), uid, gid)

    def utimens(self, path: bytes, atime_ns: int, mtime_ns: int) -> None:
        self._set_times(self._existing(path), atime_ns, mtime_ns)

    def _set_xattr(self, inode: Inode, name: bytes, value: bytes, flags: int) -> None:
        if name.startswith(b"user.") and inode.type not in (stat.S_IFREG, stat.S_IFDIR):
            raise fail(errno.EPERM)
        if name in (acl.ACCESS, acl.DEFAULT):
            self._set_acl(inode, name, value)
            return
        if flags & XATTR_CREATE and name in inode.xattrs:
            raise fail(errno.EEXIST)
        if flags & XATTR_REPLACE and name not in inode.xattrs:
            raise fail(errno.ENODATA)
        inode.xattrs[name] = value

    def _set_acl(self, inode: Inode, name: bytes, value: bytes) -> None:
        entries = acl.decode(value)
        if inode.type == stat.S_IFLNK:
            raise fail(errno.EOPNOTSUPP)
        if name == acl.DEFAULT:
            if not inode.is_directory:
                raise fail(errno.EACCES)
            inode.xattrs[name] = value
            return
        inode.mode = acl.mode_of(entries, inode.mode)
        if acl.is_extended(entries):
            inode.xattrs[name] = value
        else:
            inode.xattrs.pop(name, None)

    def _remove_xattr(self, inode: Inode, name: bytes) -> None:
        if name in (acl.ACCESS, acl.DEFAULT):
            if name not in inode.xattrs:
                raise Unpredicted(
                    "Linux's filesystems disagree on removing an ACL that is not there"
                )
        elif name.startswith(b"user.") and inode.type not in (stat.S_IFREG, stat.S_IFDIR):
            raise fail(errno.EPERM)
        elif name not in inode.xattrs:
            raise fail(errno.ENODATA)
        del inode.xattrs[name]

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        self._set_xattr(self._existing(path), name, value, flags)

    def removexattr(self, path: bytes, name: bytes) -> None:
        self._remove_xattr(self._existing(path), name)

    # Content.

    def _open(self, path: bytes, flags: int, mode: int) -> Handle:
        follow = (
            not flags & os.O_NOFOLLOW and flags & (os.O_CREAT | os.O_EXCL) != os.O_CREAT | os.O_EXCL
        )
        parent, name, inode = self._resolve(path, follow)
        if inode is None:
            if not flags & os.O_CREAT:
                raise fail(errno.ENOENT)
            inode = self._make(parent, name, stat.S_IFREG | mode)
            return Handle(inode, flags)
        if flags & os.O_CREAT and flags & os.O_EXCL:
            raise fail(errno.EEXIST)
        if flags & os.O_CREAT and parent.mode & stat.S_ISVTX and inode.uid not in (parent.uid, 0):
            raise Unpredicted("fs.protected_regular may forbid it, even to root")
        handle = Handle(inode, flags)
        if inode.type == stat.S_IFLNK:
            raise fail(errno.ENOTDIR if flags & os.O_DIRECTORY else errno.ELOOP)
        if flags & os.O_DIRECTORY and not inode.is_directory:
            raise fail(errno.ENOTDIR)
        if inode.is_directory and (handle.writable or flags & os.O_CREAT):
            raise fail(errno.EISDIR)
        if inode.type == stat.S_IFSOCK:
            raise fail(errno.ENXIO)
        if inode.type not in (stat.S_IFREG, stat.S_IFDIR):
            raise Unpredicted("opening a FIFO or a device")
        if flags & os.O_TRUNC and handle.writable:
            self._resize(inode, 0, always=True)
        return handle

    def open(self, slot: int, path: bytes, flags: int, mode: int) -> None:
        handle = self._open(path, flags, mode)
        self.handles[slot] = handle

    def close(self, slot: int) -> None:
        self._handle(slot)
        del self.handles[slot]

    def _handle(self, slot: int) -> Handle:
        if slot not in self.handles:
            raise Unpredicted("an empty slot")
        return self.handles[slot]

    def _resize(self, inode: Inode, size: int, always: bool) -> None:
        """`always`: mtime changes though the size does not (ftruncate(2) and O_TRUNC; truncate(2)
        may)."""
        if size != len(inode.content) or always:
            inode.mtime = self._now()
        else:
            self._may_touch(inode)
        inode.drop_privileges()
        del inode.content[size:]
        inode.content.extend(bytes(size - len(inode.content)))

    def _store(self, inode: Inode, offset: int, data: bytes) -> int:
        if data:
            inode.drop_privileges()
            inode.mtime = self._now()
            inode.content.extend(bytes(max(0, offset - len(inode.content))))
            inode.content[offset : offset + len(data)] = data
        return len(data)

    def pread(self, slot: int, offset: int, size: int) -> bytes:
        handle = self._handle(slot)
        if not handle.readable:
            raise fail(errno.EBADF)
        if handle.inode.is_directory:
            raise fail(errno.EISDIR)
        return bytes(handle.inode.content[offset : offset + size])

    def pwrite(self, slot: int, offset: int, data: bytes) -> int:
        handle = self._handle(slot)
        if not handle.writable:
            raise fail(errno.EBADF)
        if handle.flags & os.O_APPEND:
            offset = len(handle.inode.content)
        return self._store(handle.inode, offset, data)

    def ftruncate(self, slot: int, size: int) -> None:
        handle = self._handle(slot)
        if handle.inode.is_directory or not handle.writable:
            raise fail(errno.EINVAL)
        self._resize(handle.inode, size, always=True)

    def fchmod(self, slot: int, mode: int) -> None:
        self._set_mode(self._handle(slot).inode, mode)

    def fchown(self, slot: int, uid: int, gid: int) -> None:
        self._set_owner(self._handle(slot).inode, uid, gid)

    def futimens(self, slot: int, atime_ns: int, mtime_ns: int) -> None:
        self._set_times(self._handle(slot).inode, atime_ns, mtime_ns)

    def fsetxattr(self, slot: int, name: bytes, value: bytes, flags: int) -> None:
        self._set_xattr(self._handle(slot).inode, name, value, flags)

    def fremovexattr(self, slot: int, name: bytes) -> None:
        self._remove_xattr(self._handle(slot).inode, name)

    def fsync(self, slot: int) -> None:
        self._handle(slot)

    def create_at(self, slot: int, name: bytes, mode: int) -> None:
        """openat(2) of a new file below an open directory, which may have moved or gone; closed
        at once."""
        directory = self._handle(slot).inode
        if not directory.is_directory:
            raise fail(errno.ENOTDIR)
        if directory.parent is None:
            raise fail(errno.ENOENT)
        if len(name) > NAME_MAX:
            raise fail(errno.ENAMETOOLONG)
        if name in directory.children:
            raise fail(errno.EEXIST)
        self._make(directory, name, stat.S_IFREG | mode)

    def write(self, path: bytes, offset: int, data: bytes) -> int:
        """open(2) for writing, pwrite(2) and close(2); a negative offset appends."""
        handle = self._open(path, os.O_WRONLY, 0)
        return self._store(handle.inode, len(handle.inode.content) if offset < 0 else offset, data)

    def truncate(self, path: bytes, size: int) -> None:
        inode = self._existing(path, follow=True)
        if inode.is_directory:
            raise fail(errno.EISDIR)
        if inode.type != stat.S_IFREG:
            raise fail(errno.EINVAL)
        self._resize(inode, size, always=False)
