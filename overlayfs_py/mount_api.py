"""The kernel's mount calls that build a mount out of sight before it gets a place: fsopen(2),
fsconfig(2), fsmount(2), move_mount(2), and unshare(2).

glibc has them since 2.36. Any thread but for `leave_mount_namespace`; the calls block.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

_CLOEXEC = 1
_SET_FLAG, _SET_STRING, _SET_FD, _CREATE = 0, 1, 5, 6
_MOVE_MOUNT_F_EMPTY_PATH = 4
_CLONE_NEWNS = 0x20000

ATTRIBUTES = {
    "ro": 0x1,
    "nosuid": 0x2,
    "nodev": 0x4,
    "noexec": 0x8,
    "noatime": 0x10,
    "strictatime": 0x20,
    "nodiratime": 0x80,
    "nosymfollow": 0x200000,
}
"""Flag words of `mount_flags` that are a mount's own, by their bit for fsmount(2); the others are
the filesystem's."""


class Filesystem:
    """A filesystem that is being set up, and the mount that comes of it.

    Args:
        fstype: as in /proc/filesystems.

    Raises:
        OSError: as the call of a method's name answers, with what the kernel has to say about it.
    """

    def __init__(self, fstype: str) -> None:
        self.fstype = fstype
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._call("fsopen", fstype.encode(), _CLOEXEC)

    def __enter__(self) -> Filesystem:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def flag(self, name: str) -> None:
        """Set an option without a value."""
        self._set(_SET_FLAG, name, None, 0)

    def string(self, name: str, value: bytes) -> None:
        """Set an option."""
        self._set(_SET_STRING, name, value, 0)

    def descriptor(self, name: str, fd: int) -> None:
        """Set an option to what a descriptor stands for."""
        self._set(_SET_FD, name, None, fd)

    def mount(self, words: list[str]) -> int:
        """Make it.

        Args:
            words: keys of `ATTRIBUTES`.

        Returns:
            a descriptor of the mount, which has no place yet and goes with the descriptor.
        """
        self._set(_CREATE, None, None, 0)
        attributes = 0
        for word in words:
            attributes |= ATTRIBUTES[word]
        return self._call("fsmount", self._fd, _CLOEXEC, attributes)

    def _set(self, command: int, name: str | None, value: bytes | None, fd: int) -> None:
        key = None if name is None else name.encode()
        self._call("fsconfig", self._fd, command, key, value, fd)

    def _call(self, name: str, *arguments: object) -> int:
        result: int = getattr(self._libc, name)(*arguments)
        if result < 0:
            number = ctypes.get_errno()
            said = self._said() if hasattr(self, "_fd") else ""
            raise OSError(number, said or os.strerror(number), self.fstype)
        return result

    def _said(self) -> str:
        """The kernel's own words: the last of the messages in the descriptor, "e TEXT"."""
        last = ""
        with contextlib.suppress(OSError):
            while line := os.read(self._fd, 1024):
                last = os.fsdecode(line).strip().partition(" ")[2]
        return last


def place(mount: int, target: bytes) -> None:
    """Give a mount its place.

    Raises:
        OSError: as move_mount(2) answers, with the target as file name.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    at_cwd = -100
    if libc.move_mount(mount, b"", at_cwd, target, _MOVE_MOUNT_F_EMPTY_PATH) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def leave_mount_namespace() -> None:
    """Give this process, which must have one thread, a mount namespace of its own.

    Raises:
        OSError: as unshare(2) answers.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
