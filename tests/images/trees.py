"""A tree as data: everything about every file that an image can say, for comparing two trees."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    """`same`: all names of its inode, sorted. `content`: SHA-256, or the target of a symlink."""

    kind: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    rdev: int
    nlink: int
    xattrs: tuple[tuple[str, bytes], ...]
    content: bytes
    same: tuple[bytes, ...]


def read(root: str | os.PathLike[str]) -> dict[bytes, File]:
    """Everything below and at a directory, by path relative to it (b"" is itself).

    Raises:
        AssertionError: listing and lookup disagree.
    """
    found: dict[bytes, os.stat_result] = {}
    inodes: dict[tuple[int, int], list[bytes]] = {}
    _walk(os.open(root, os.O_RDONLY | os.O_DIRECTORY), b"", found, inodes)
    return {
        path: _describe(os.fsencode(root) + b"/" + path, status, inodes)
        for path, status in found.items()
    }


def _walk(
    directory: int,
    path: bytes,
    found: dict[bytes, os.stat_result],
    inodes: dict[tuple[int, int], list[bytes]],
) -> None:
    found[path] = os.fstat(directory)
    try:
        with os.scandir(directory) as entries:
            listed = [
                (os.fsencode(e.name), e.inode(), e.is_dir(follow_symlinks=False)) for e in entries
            ]
        for name, ino, is_directory in sorted(listed):
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            here = os.path.join(path, name)
            assert ino == status.st_ino, f"{here!r}: d_ino {ino}, st_ino {status.st_ino}"
            assert is_directory == stat.S_ISDIR(status.st_mode), here
            if is_directory:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                _walk(os.open(name, flags, dir_fd=directory), here, found, inodes)
            else:
                found[here] = status
                inodes.setdefault((status.st_dev, status.st_ino), []).append(here)
    finally:
        os.close(directory)


def _describe(
    full: bytes, status: os.stat_result, inodes: dict[tuple[int, int], list[bytes]]
) -> File:
    kind = stat.S_IFMT(status.st_mode)
    content = b""
    if kind == stat.S_IFREG:
        with open(full, "rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
    elif kind == stat.S_IFLNK:
        content = os.readlink(full)
    return File(
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        # A directory's size is its filesystem's own affair.
        size=0 if kind == stat.S_IFDIR else status.st_size,
        mtime_ns=status.st_mtime_ns,
        rdev=status.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
        nlink=status.st_nlink,
        xattrs=tuple(
            (name, os.getxattr(full, name, follow_symlinks=False))
            for name in sorted(os.listxattr(full, follow_symlinks=False))
        ),
        content=content,
        same=tuple(sorted(inodes.get((status.st_dev, status.st_ino), [])))
        if kind != stat.S_IFDIR
        else (),
    )


def differences(
    ours: dict[bytes, File], theirs: dict[bytes, File], ignored: frozenset[str] = frozenset()
) -> list[str]:
    """One line for each path that only one has and each field that differs.

    Args:
        ignored: names of fields that the other side is known not to keep.
    """
    said = [f"{path!r}: only ours" for path in sorted(ours.keys() - theirs.keys())]
    said += [f"{path!r}: only theirs" for path in sorted(theirs.keys() - ours.keys())]
    for path in sorted(ours.keys() & theirs.keys()):
        for field in File.__dataclass_fields__:
            mine, other = getattr(ours[path], field), getattr(theirs[path], field)
            if field not in ignored and mine != other:
                said.append(f"{path!r} {field}: ours {mine!r}, theirs {other!r}")
    return said
