"""Whether two trees are the same: everything about every file that an image can say."""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

Described = tuple[object, ...]


def differences(one: Path, other: Path) -> Iterator[str]:
    """A line for each path that only one has, or that is not the same in both."""
    ours, theirs = describe(one), describe(other)
    for path in sorted(ours.keys() | theirs.keys()):
        if ours.get(path) != theirs.get(path):
            yield f"{os.fsdecode(path)}: {ours.get(path)} and {theirs.get(path)}"


def describe(root: Path) -> dict[bytes, Described]:
    """Everything below and at `root`, by path. Hard links are told by the first name of their inode."""
    found: dict[bytes, Described] = {}
    first: dict[tuple[int, int], bytes] = {}
    for path in _paths(os.fsencode(root)):
        relative = path[len(os.fsencode(root)) :]
        status = os.lstat(path)
        kind = stat.S_IFMT(status.st_mode)
        leader = relative
        if kind != stat.S_IFDIR:
            leader = first.setdefault((status.st_dev, status.st_ino), relative)
        content: object = None
        if kind == stat.S_IFREG and leader == relative:
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        elif kind == stat.S_IFLNK:
            content = os.readlink(path)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            content = status.st_rdev
        found[relative] = (
            oct(status.st_mode),
            status.st_uid,
            status.st_gid,
            None if kind == stat.S_IFDIR else status.st_size,
            status.st_mtime_ns,
            None if kind == stat.S_IFDIR else status.st_nlink,
            content,
            leader,
            {
                name: _xattr(path, name)
                for name in sorted(os.listxattr(path, follow_symlinks=False))
            },
        )
    return found


def _xattr(path: bytes, name: str) -> bytes:
    return os.getxattr(path, name, follow_symlinks=False)


def _paths(root: bytes) -> Iterator[bytes]:
    yield root
    for directory, directories, files in os.walk(root):
        directories.sort()
        for name in sorted([*directories, *files]):
            yield os.path.join(directory, name)
