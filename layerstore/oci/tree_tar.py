"""The tar stream of a directory tree: the layer that a `dir:` source is. Names in byte order."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator

from layerstore.index.packing import can_store_xattr
from layerstore.oci import tar_writer

_NO_XATTRS = (errno.EOPNOTSUPP, errno.ENODATA, errno.EPERM, errno.EACCES)


class TreeTar(tar_writer.Chunks):
    """A tar stream of everything below a directory, to be read like a file.

    Sockets have no place in a tar and are left out, as GNU tar leaves them out.

    Args:
        path: the directory; its own attributes become the root's.
    """

    def __init__(self, path: bytes) -> None:
        self._path = path
        super().__init__(self._stream())

    def _stream(self) -> Generator[bytes, None, None]:
        links: dict[tuple[int, int], bytes] = {}
        waiting = [b""]
        while waiting:
            name = waiting.pop()
            path = os.path.join(self._path, name) if name else self._path
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            if kind == stat.S_IFSOCK:
                continue
            if kind == stat.S_IFDIR:
                yield _header(b"./" + name + (b"/" if name else b""), status, path)
                children = sorted(os.listdir(path), reverse=True)
                waiting += [os.path.join(name, child) for child in children]
                continue
            key = (status.st_dev, status.st_ino)
            if status.st_nlink > 1 and key in links:
                member = tar_writer.member_of(b"./" + name, status)
                member.hard_link = links[key]
                yield tar_writer.header(member)
                continue
            links[key] = b"./" + name
            if kind == stat.S_IFREG:
                yield from _file(b"./" + name, path)
            else:
                yield _header(b"./" + name, status, path)
        yield tar_writer.END


def _file(name: bytes, path: bytes) -> Iterator[bytes]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise tar_writer.changed(path)
        yield from tar_writer.file(_member(name, status, path), fd, path)
    finally:
        os.close(fd)


def _header(name: bytes, status: os.stat_result, path: bytes) -> bytes:
    return tar_writer.header(_member(name, status, path))


def _member(name: bytes, status: os.stat_result, path: bytes) -> tar_writer.Member:
    member = tar_writer.member_of(name, status)
    if stat.S_ISLNK(status.st_mode):
        member.link = os.readlink(path)
    member.xattrs = xattrs_of(path)
    return member


def xattrs_of(path: bytes) -> dict[bytes, bytes]:
    """What belongs to the tree: labels and signatures (security.selinux, .ima, .evm) are this
    host's, as container engines see it."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return {}
        raise
    found = {}
    for text in names:
        name = os.fsencode(text)
        if not can_store_xattr(name):
            continue
        if name.startswith(b"security.") and name != b"security.capability":
            continue
        try:
            value = os.getxattr(path, name, follow_symlinks=False)
        except OSError as error:
            if error.errno in _NO_XATTRS:
                continue
            raise
        found[name] = value
    return found
