"""Where an object of a real directory tree is: below a directory descriptor, or only in a descriptor of its own.

Both kinds answer the same calls, so that the union does not care whether a file still has a name. Any thread.
"""

from __future__ import annotations

import os
from typing import Protocol

from overlayfs_py import syscalls


class Place(Protocol):
    """One object; every method may raise OSError as the system call of its name does."""

    def stat(self) -> os.stat_result: ...
    def birth_ns(self) -> int | None: ...
    def readlink(self) -> bytes: ...
    def open(self, flags: int) -> int: ...
    def chown(self, uid: int, gid: int) -> None: ...
    def chmod(self, mode: int) -> None: ...
    def utimens(self, atime_ns: int | None, mtime_ns: int | None) -> None: ...
    def listxattr(self) -> list[str]: ...
    def getxattr(self, name: str | bytes) -> bytes: ...
    def setxattr(self, name: str | bytes, value: bytes, flags: int = 0) -> None: ...
    def removexattr(self, name: str | bytes) -> None: ...
    def link(self, new_fd: int, new: bytes) -> None: ...


class Named:
    """An object at `path` below the directory `dir_fd`. The path is short enough for one system call.

    `keep` owns the descriptor, if nobody else does.
    """

    __slots__ = ("_keep", "dir_fd", "path")

    def __init__(self, dir_fd: int, path: bytes, keep: object = None) -> None:
        self.dir_fd = dir_fd
        self.path = path
        self._keep = keep

    @property
    def _proc(self) -> bytes:
        # The xattr calls take no directory descriptor before Linux 6.13.
        return b"/proc/self/fd/%d/%s" % (self.dir_fd, self.path)

    def stat(self) -> os.stat_result:
        return os.stat(self.path, dir_fd=self.dir_fd, follow_symlinks=False)

    def birth_ns(self) -> int | None:
        return syscalls.birth_ns(self.dir_fd, self.path)

    def readlink(self) -> bytes:
        return os.readlink(self.path, dir_fd=self.dir_fd)

    def open(self, flags: int) -> int:
        return os.open(self.path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.dir_fd)

    def chown(self, uid: int, gid: int) -> None:
        syscalls.chown(self.dir_fd, self.path, uid, gid)

    def chmod(self, mode: int) -> None:
        syscalls.chmod(self.dir_fd, self.path, mode)

    def utimens(self, atime_ns: int | None, mtime_ns: int | None) -> None:
        syscalls.utimens(self.dir_fd, self.path, atime_ns, mtime_ns)

    def listxattr(self) -> list[str]:
        return os.listxattr(self._proc, follow_symlinks=False)

    def getxattr(self, name: str | bytes) -> bytes:
        return os.getxattr(self._proc, name, follow_symlinks=False)

    def setxattr(self, name: str | bytes, value: bytes, flags: int = 0) -> None:
        syscalls.setxattr(self._proc, name, value, flags)

    def removexattr(self, name: str | bytes) -> None:
        syscalls.removexattr(self._proc, name)

    def link(self, new_fd: int, new: bytes) -> None:
        syscalls.link(self.dir_fd, self.path, new_fd, new)


class Pinned:
    """An inode held by a descriptor (O_PATH is enough), reached through /proc: the magic link there leads to the
    inode itself, also where it is a symlink, a FIFO or a device, without opening that."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @property
    def _proc(self) -> bytes:
        return b"/proc/self/fd/%d" % self.fd

    def stat(self) -> os.stat_result:
        return os.fstat(self.fd)

    def birth_ns(self) -> int | None:
        return syscalls.birth_ns(self.fd, b"")

    def readlink(self) -> bytes:
        return os.readlink(b"", dir_fd=self.fd)

    def open(self, flags: int) -> int:
        return os.open(self._proc, (flags & ~os.O_NOFOLLOW) | os.O_CLOEXEC)

    def chown(self, uid: int, gid: int) -> None:
        syscalls.chown_descriptor(self.fd, uid, gid)

    def chmod(self, mode: int) -> None:
        syscalls.chmod(syscalls.AT_FDCWD, self._proc, mode)

    def utimens(self, atime_ns: int | None, mtime_ns: int | None) -> None:
        syscalls.utimens_descriptor(self.fd, atime_ns, mtime_ns)

    def listxattr(self) -> list[str]:
        return os.listxattr(self._proc)

    def getxattr(self, name: str | bytes) -> bytes:
        return os.getxattr(self._proc, name)

    def setxattr(self, name: str | bytes, value: bytes, flags: int = 0) -> None:
        syscalls.setxattr(self._proc, name, value, flags, follow=True)

    def removexattr(self, name: str | bytes) -> None:
        syscalls.removexattr(self._proc, name, follow=True)

    def link(self, new_fd: int, new: bytes) -> None:
        syscalls.link_descriptor(self.fd, new_fd, new)


class Opened(Pinned):
    """An inode held by a descriptor that is open for reading or writing: no path is walked at all."""

    def chown(self, uid: int, gid: int) -> None:
        syscalls.chown_opened(self.fd, uid, gid)

    def chmod(self, mode: int) -> None:
        syscalls.chmod_opened(self.fd, mode)

    def listxattr(self) -> list[str]:
        return os.listxattr(self.fd)

    def getxattr(self, name: str | bytes) -> bytes:
        return os.getxattr(self.fd, name)

    def setxattr(self, name: str | bytes, value: bytes, flags: int = 0) -> None:
        syscalls.setxattr_opened(self.fd, name, value, flags)
