"""mount(8)'s flag words, the bits of mount(2) behind them, and the calls that change them on a
live mount.

Owns the words that say how the kernel treats any mount (nosuid, noatime, propagation); the options
of a union are in `options`. May be called from any thread; the calls block.
"""

from __future__ import annotations

import ctypes
import os

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_DIRSYNC = 128
MS_NOSYMFOLLOW = 256
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_REC = 16384
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

# Words that decide the same thing; the last one said counts. "" is the word that needs no saying.
GROUPS: dict[str, str] = {
    "ro": "ro",
    "rw": "ro",
    "suid": "suid",
    "nosuid": "suid",
    "dev": "dev",
    "nodev": "dev",
    "exec": "exec",
    "noexec": "exec",
    "sync": "sync",
    "async": "sync",
    "dirsync": "dirsync",
    "atime": "atime",
    "noatime": "atime",
    "relatime": "atime",
    "norelatime": "atime",
    "strictatime": "atime",
    "nostrictatime": "atime",
    "diratime": "diratime",
    "nodiratime": "diratime",
    "lazytime": "lazytime",
    "nolazytime": "lazytime",
    "symfollow": "symfollow",
    "nosymfollow": "symfollow",
}

# What the kernel does anyway. suid and dev are not among them: FUSE mounts are nosuid,nodev unless
# told otherwise.
IMPLIED = frozenset(
    {"exec", "async", "atime", "relatime", "norelatime", "nostrictatime", "diratime"}
    | {"nolazytime", "symfollow"}
)

FLAGS: dict[str, int] = {
    "ro": MS_RDONLY,
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "noexec": MS_NOEXEC,
    "sync": MS_SYNCHRONOUS,
    "dirsync": MS_DIRSYNC,
    "noatime": MS_NOATIME,
    "nodiratime": MS_NODIRATIME,
    "relatime": MS_RELATIME,
    "strictatime": MS_STRICTATIME,
    "lazytime": MS_LAZYTIME,
    "nosymfollow": MS_NOSYMFOLLOW,
}

PROPAGATION: dict[str, int] = {
    "private": MS_PRIVATE,
    "rprivate": MS_PRIVATE | MS_REC,
    "shared": MS_SHARED,
    "rshared": MS_SHARED | MS_REC,
    "slave": MS_SLAVE,
    "rslave": MS_SLAVE | MS_REC,
    "unbindable": MS_UNBINDABLE,
    "runbindable": MS_UNBINDABLE | MS_REC,
}


def last_of_each(words: list[str]) -> list[str]:
    """The flag words that count among `words`: the last of each group."""
    last: dict[str, str] = {}
    for word in words:
        last[GROUPS[word]] = word
    return list(last.values())


def settle(words: list[str]) -> list[str]:
    """`last_of_each`, without what the kernel does anyway."""
    return [word for word in last_of_each(words) if word not in IMPLIED]


def bits(words: list[str]) -> int:
    """The mount(2) flags of settled words and of the words in /proc/self/mountinfo."""
    flags = 0
    for word in words:
        flags |= FLAGS.get(word, 0)
    return flags


def mount(source: bytes | None, target: bytes, fstype: bytes | None, flags: int) -> None:
    """mount(2) without data.

    Raises:
        OSError: as mount(2) answers, with the target as file name.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source, target, fstype, ctypes.c_ulong(flags), None) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), target)


def umount(target: bytes, flags: int = 0) -> None:
    """umount2(2).

    Raises:
        OSError: as umount2(2) answers, with the target as file name.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(target, flags) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), target)
