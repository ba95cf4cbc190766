"""Random operations: plain data, chosen by what the model holds, so that most of them hit
something."""

from __future__ import annotations

import os
import random
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.model import acl
from tests.model.tree import (
    CAPABILITY,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    XATTR_CREATE,
    XATTR_REPLACE,
    Inode,
    Tree,
)


class Operation(NamedTuple):
    """A method's name and its arguments; printed, it is Python that makes it again."""

    name: str
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        return f"op({', '.join(map(repr, (self.name, *self.arguments)))}),"


def op(name: str, *arguments: Any) -> Operation:
    return Operation(name, arguments)


DEPTH_MAX = 13

Accept = Callable[[Inode], bool]

SLOTS = 4
IDS = (0, 0, 0, 1, 1000)
MODES = (0o644, 0o755, 0o700, 0o600, 0o777, 0o444, 0o4755, 0o2755, 0o2644, 0o1777, 0o000, 0o6711)
NAMES = (
    *[bytes([letter]) for letter in b"aaabbbcccddef"],
    b"with space\n",
    b"\xff\xfe not UTF-8",
    "\N{LATIN SMALL LETTER E WITH ACUTE}".encode(),
    b".hidden",
    b".wh",
    b"n" * 255,
)
SHORT_NAMES = (*NAMES[:-1], b"n" * 40)
"""The kernel's overlayfs cannot rename a lower directory whose path is over 256 bytes
(redirect_max): EXDEV."""


@dataclass(frozen=True, slots=True)
class Features:
    """What may be generated: some subjects cannot do some things (see SEMANTICS.md)."""

    default_acls: bool = True
    zero_devices: bool = True
    rename_whiteout: bool = True
    overlay_xattrs: bool = True
    umask_and_default_acls: bool = True
    rename_directories: bool = True
    names: tuple[bytes, ...] = NAMES


CAPABILITY_VALUE = struct.pack("<IIIII", 0x02000001, 0x2000, 0, 0, 0)
XATTRS = (
    b"user.one",
    b"user.one",
    b"user.overlay.opaque",
    b"trusted.one",
    b"trusted.two",
    b"user.empty",
)
OVERLAY_XATTRS = (
    b"trusted.overlay.opaque",
    b"trusted.overlay.redirect",
    b"trusted.overlay.overlay.x",
)


NOWHERE = b"n" * 256
"""Longer than a name can be."""


def random_time(chance: random.Random) -> int:
    """Nanoseconds, seldom before 1970."""
    seconds = chance.randrange(-50_000_000, 2_000_000_000)
    return seconds * 1_000_000_000 + chance.randrange(1_000_000_000)


def random_target(chance: random.Random, names: tuple[bytes, ...] = NAMES) -> bytes:
    """A symlink's: below its own directory, so that nothing leads out of the tree; sometimes as
    long as can be."""
    if chance.random() < 0.05:
        return b"t/" * (2047 if names is NAMES else 500) + b"t"
    return b"/".join(chance.choice(NAMES[:13]) for _ in range(chance.randint(1, 2)))


def random_value(chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice([0, 1, 16, 200]))


def random_content(chance: random.Random) -> bytes:
    """Mostly short; sometimes more than a page, sometimes with a hole."""
    size = chance.choice([0, 1, 10, 100, 5000, 70_000])
    content = chance.randbytes(min(size, 64))
    if size > 64:
        middle = b"\0" if chance.random() < 0.5 else b"x"
        content += middle * (size - 128) + chance.randbytes(64)
    return content


def random_acl(chance: random.Random) -> bytes:
    entries = [(acl.USER_OBJ, chance.choice([6, 7]), acl.NO_ID)]
    extended = chance.random() < 0.7
    if extended:
        entries.append((acl.USER, chance.randrange(8), 1000))
    entries.append((acl.GROUP_OBJ, chance.randrange(8), acl.NO_ID))
    if extended:
        entries.append((acl.GROUP, chance.randrange(8), 50))
        entries.append((acl.MASK, chance.randrange(8), acl.NO_ID))
    entries.append((acl.OTHER, chance.randrange(8), acl.NO_ID))
    return acl.encode(entries)


class Generator:
    """Chooses operations for `tree`."""

    def __init__(self, tree: Tree, features: Features) -> None:
        self.tree = tree
        self.features = features

    def of_kind(self, kind: str, chance: random.Random) -> Operation:
        return KINDS[kind][1](self, chance)

    # Paths.

    def _existing(self, chance: random.Random, accept: Accept = lambda _: True) -> bytes:
        """A path that exists and is accepted, most of the time; else anything."""
        paths = [path for path, inode in self.tree.walk() if path and accept(inode)]
        if not paths or chance.random() < 0.04:
            return self._new(chance)
        return chance.choice(paths)

    def _new(self, chance: random.Random) -> bytes:
        """A name in a directory, there already or not; seldom one below something that is no
        directory."""
        dice = chance.random()
        parents = [
            path
            for path, inode in self.tree.walk()
            if (inode.is_directory and path.count(b"/") < 4) or dice < 0.03
        ]
        parent = chance.choice(parents)
        name = NOWHERE if dice > 0.99 else chance.choice(self.features.names)
        return parent + b"/" + name if parent else name

    def _slot(self, chance: random.Random, accept: Accept = lambda _: True) -> int:
        slots = [slot for slot, handle in self.tree.handles.items() if accept(handle.inode)]
        return chance.choice(slots) if slots else chance.randrange(SLOTS)

    # One method for each kind.

    def open(self, chance: random.Random) -> Operation:
        if chance.random() < 0.2:
            path = self._existing(chance, lambda inode: inode.is_directory)
            return op("open", chance.randrange(SLOTS), path, os.O_RDONLY | os.O_DIRECTORY, 0)
        path = self._existing(chance, _is_regular)
        flags = chance.choice([os.O_RDONLY, os.O_RDWR, os.O_RDWR, os.O_WRONLY])
        if flags != os.O_RDONLY:
            flags |= chance.choice([0, 0, os.O_APPEND, os.O_TRUNC])
        return op(
            "open", chance.randrange(SLOTS), path, flags | chance.choice([0, os.O_NOFOLLOW]), 0
        )

    def create(self, chance: random.Random) -> Operation:
        flags = os.O_CREAT | chance.choice([os.O_RDWR, os.O_WRONLY, os.O_RDONLY])
        flags |= chance.choice([0, os.O_EXCL])
        if flags & os.O_ACCMODE:
            flags |= chance.choice([0, os.O_TRUNC, os.O_APPEND])
        return op("open", chance.randrange(SLOTS), self._new(chance), flags, chance.choice(MODES))

    def close(self, chance: random.Random) -> Operation:
        return op("close", self._slot(chance))

    def pread(self, chance: random.Random) -> Operation:
        return op(
            "pread",
            self._slot(chance, _is_regular),
            _offset(chance),
            chance.choice([1, 4096, 100_000]),
        )

    def pwrite(self, chance: random.Random) -> Operation:
        return op(
            "pwrite",
            self._slot(chance, _is_regular),
            _offset(chance),
            random_content(chance)[:9000],
        )

    def ftruncate(self, chance: random.Random) -> Operation:
        return op("ftruncate", self._slot(chance, _is_regular), _offset(chance))

    def fchmod(self, chance: random.Random) -> Operation:
        return op("fchmod", self._slot(chance), chance.choice(MODES))

    def fchown(self, chance: random.Random) -> Operation:
        return op(
            "fchown", self._slot(chance), chance.choice((-1, *IDS)), chance.choice((-1, *IDS))
        )

    def futimens(self, chance: random.Random) -> Operation:
        return op("futimens", self._slot(chance), random_time(chance), random_time(chance))

    def fsetxattr(self, chance: random.Random) -> Operation:
        return op("fsetxattr", self._slot(chance), chance.choice(XATTRS), random_value(chance), 0)

    def fremovexattr(self, chance: random.Random) -> Operation:
        return op("fremovexattr", self._slot(chance), chance.choice(XATTRS))

    def fsync(self, chance: random.Random) -> Operation:
        return op("fsync", self._slot(chance))

    def create_at(self, chance: random.Random) -> Operation:
        slot = self._slot(chance, lambda inode: inode.is_directory)
        return op("create_at", slot, chance.choice(self.features.names), chance.choice(MODES))

    def write(self, chance: random.Random) -> Operation:
        path = self._existing(chance, lambda inode: _is_regular(inode) or chance.random() < 0.1)
        return op(
            "write", path, chance.choice([-1, _offset(chance)]), random_content(chance)[:9000]
        )

    def truncate(self, chance: random.Random) -> Operation:
        path = self._existing(chance, lambda inode: _is_regular(inode) or chance.random() < 0.1)
        return op("truncate", path, _offset(chance))

    def mkdir(self, chance: random.Random) -> Operation:
        return op("mkdir", self._new(chance), chance.choice(MODES))

    def symlink(self, chance: random.Random) -> Operation:
        return op("symlink", random_target(chance, self.features.names), self._new(chance))

    def mknod(self, chance: random.Random) -> Operation:
        kinds = [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFREG]
        kind = chance.choice(kinds)
        rdev = os.makedev(chance.choice([9, 300]), chance.choice([0, 7, 70000]))
        device = kind in (stat.S_IFCHR, stat.S_IFBLK)
        zero = kind == stat.S_IFCHR and self.features.zero_devices and chance.random() < 0.3
        if zero or not device:
            rdev = 0
        return op("mknod", self._new(chance), kind | chance.choice(MODES), rdev)

    def link(self, chance: random.Random) -> Operation:
        source = self._existing(
            chance, lambda inode: not inode.is_directory or chance.random() < 0.05
        )
        return op("link", source, self._new(chance))

    def rename(self, chance: random.Random) -> Operation:
        flags = chance.choice([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE])
        if self.features.rename_whiteout and chance.random() < 0.1:
            flags |= RENAME_WHITEOUT
        to_existing = flags & RENAME_EXCHANGE or chance.random() < 0.4
        new = self._existing(chance) if to_existing else self._new(chance)
        return self._rename(self._existing(chance), new, flags)

    def rename_directory(self, chance: random.Random) -> Operation:
        old = self._existing(chance, lambda inode: inode.is_directory)
        empty = self._existing(chance, lambda inode: inode.is_directory and not inode.children)
        new = chance.choice([self._new(chance), empty])
        return self._rename(old, new, chance.choice([0, RENAME_EXCHANGE, 0]))

    def _rename(self, old: bytes, new: bytes, flags: int) -> Operation:
        """Not where the tree would become so deep that its paths are longer than PATH_MAX."""
        longest = max(path.count(b"/") for path, _ in self.tree.walk())
        deep = longest + max(old.count(b"/"), new.count(b"/")) > DEPTH_MAX
        inodes = (self.tree.find(old), self.tree.find(new))
        directory = any(inode is not None and inode.is_directory for inode in inodes)
        refused = deep or (directory and not self.features.rename_directories)
        return op("look", old) if refused else op("rename", old, new, flags)

    def unlink(self, chance: random.Random) -> Operation:
        return op(
            "unlink", self._existing(chance, lambda i: not i.is_directory or chance.random() < 0.05)
        )

    def rmdir(self, chance: random.Random) -> Operation:
        def is_empty_directory(inode: Inode) -> bool:
            return inode.is_directory and not inode.children

        return op(
            "rmdir",
            self._existing(chance, lambda i: is_empty_directory(i) or chance.random() < 0.1),
        )

    def chmod(self, chance: random.Random) -> Operation:
        return op("chmod", self._existing(chance), chance.choice(MODES))

    def chown(self, chance: random.Random) -> Operation:
        path = self._existing(chance)
        return op("chown", path, chance.choice((-1, *IDS)), chance.choice((-1, *IDS)))

    def utimens(self, chance: random.Random) -> Operation:
        return op("utimens", self._existing(chance), random_time(chance), random_time(chance))

    def setxattr(self, chance: random.Random) -> Operation:
        flags = chance.choice([0, 0, 0, XATTR_CREATE, XATTR_REPLACE])
        dice = chance.random()
        if dice < 0.15:
            path = self._existing(chance, _is_regular)
            return op("setxattr", path, CAPABILITY, CAPABILITY_VALUE, 0)
        if dice < 0.35:
            name = (
                acl.DEFAULT if self.features.default_acls and chance.random() < 0.4 else acl.ACCESS
            )
            path = self._existing(chance, lambda inode: inode.is_directory or name == acl.ACCESS)
            return op("setxattr", path, name, random_acl(chance), 0)
        names = XATTRS + OVERLAY_XATTRS if self.features.overlay_xattrs else XATTRS
        return op(
            "setxattr", self._existing(chance), chance.choice(names), random_value(chance), flags
        )

    def removexattr(self, chance: random.Random) -> Operation:
        path = self._existing(chance, lambda inode: bool(inode.xattrs) or chance.random() < 0.05)
        inode = self.tree.find(path)
        names = sorted(inode.xattrs) if inode and inode.xattrs else XATTRS
        return op("removexattr", path, chance.choice(names))

    def look(self, chance: random.Random) -> Operation:
        return op("look", self._new(chance))

    def forget(self, chance: random.Random) -> Operation:
        return op("forget", chance.randrange(1 << 16))

    def remount(self, chance: random.Random) -> Operation:
        return op("remount")

    def rotate(self, chance: random.Random) -> Operation:
        return op("rotate")


def _is_regular(inode: Inode) -> bool:
    return inode.type == stat.S_IFREG


def _offset(chance: random.Random) -> int:
    return chance.choice([0, 1, 10, 100, 4096, 5000, 70_000])


KINDS: dict[str, tuple[float, Callable[[Generator, random.Random], Operation]]] = {
    "open": (6, Generator.open),
    "create": (6, Generator.create),
    "close": (3, Generator.close),
    "pread": (3, Generator.pread),
    "pwrite": (5, Generator.pwrite),
    "ftruncate": (2, Generator.ftruncate),
    "fchmod": (2, Generator.fchmod),
    "fchown": (2, Generator.fchown),
    "futimens": (2, Generator.futimens),
    "fsetxattr": (2, Generator.fsetxattr),
    "fremovexattr": (1, Generator.fremovexattr),
    "fsync": (1, Generator.fsync),
    "create_at": (2, Generator.create_at),
    "write": (5, Generator.write),
    "truncate": (3, Generator.truncate),
    "mkdir": (6, Generator.mkdir),
    "symlink": (3, Generator.symlink),
    "mknod": (4, Generator.mknod),
    "link": (6, Generator.link),
    "rename": (9, Generator.rename),
    "rename_directory": (6, Generator.rename_directory),
    "unlink": (7, Generator.unlink),
    "rmdir": (5, Generator.rmdir),
    "chmod": (4, Generator.chmod),
    "chown": (3, Generator.chown),
    "utimens": (4, Generator.utimens),
    "setxattr": (5, Generator.setxattr),
    "removexattr": (2, Generator.removexattr),
    "look": (3, Generator.look),
    "forget": (2, Generator.forget),
    "remount": (0.7, Generator.remount),
    "rotate": (0.3, Generator.rotate),
}
"""Each kind's weight where operations are drawn freely, and the method that makes one."""

GROWING = frozenset(["create", "create_at", "mkdir", "symlink", "mknod", "link"])
"""Kinds left out while the tree is large, so that comparing it stays quick."""
