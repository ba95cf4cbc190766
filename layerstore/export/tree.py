"""The root filesystem of an image as a directory tree: what `dir:` imports.

Owners, modes, times, xattrs, devices, hard links and holes are as in the image. Who is not root
cannot give files away: that is an error unless the image's files belong to them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from layerstore.commit.base import Base
from layerstore.errors import StoreError, show
from layerstore.index.reader import Index, Inline, Object, Sparse
from layerstore.objects import Objects, sync_filesystem
from layerstore.oci.tar_writer import Member

_CHUNK_SIZE = 8 << 20
_NO_RANGES = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM)


class TreeWriter:
    """Writes the tree of an image.

    Args:
        index: of the image.
        objects: of its store.
        directory: an empty one, which becomes the root.
        shown: what to call it in messages.
    """

    def __init__(self, index: Index, objects: Objects, directory: bytes, shown: bytes) -> None:
        self._index = index
        self._objects = objects
        self._tree = Base(index, objects)
        self._shown = shown
        # Paths from here stay as short as they are in the image.
        self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._verified: set[str] = set()
        self._first: dict[int, bytes] = {}

    def write(self) -> None:
        """Write it all, and bring it to the disk.

        Raises:
            StoreError: something of the image is damaged, or may not be made.
        """
        try:
            for path, member in [*self._make_directories()][::-1]:
                self._decorate(path, member)  # last: what is made in it changes its time
            sync_filesystem(self._root)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP):
                raise
            name = show(error.filename) if error.filename is not None else show(self._shown)
            raise StoreError(
                f"{show(self._shown)}: {name}: {error.strerror}: owners, devices and xattrs as the image"
                " has them need root on a filesystem that has them; podman unshare makes one root of"
                " one's own ids, and tar: needs neither"
            ) from None
        finally:
            os.close(self._root)

    def _make_directories(self) -> Iterator[tuple[bytes, Member]]:
        """Make everything; gives the directories, each before those in it."""
        waiting = [(b".", self._tree.root)]
        while waiting:
            path, nid = waiting.pop()
            yield path, self._tree.member(nid)
            for name, child, kind in self._index.entries(nid):
                below = os.path.join(path, name)
                if kind == stat.S_IFDIR >> 12:
                    os.mkdir(below, 0o700, dir_fd=self._root)
                    waiting.append((below, child))
                else:
                    self._make(below, child)

    def _make(self, path: bytes, nid: int) -> None:
        known = self._first.get(nid)
        if known is not None:
            os.link(
                known, path, src_dir_fd=self._root, dst_dir_fd=self._root, follow_symlinks=False
            )
            return
        if self._index.stat(nid).nlink > 1:
            self._first[nid] = path
        member = self._tree.member(nid)
        if member.kind == stat.S_IFREG:
            self._make_file(path, nid)
        elif member.kind == stat.S_IFLNK:
            os.symlink(member.link, path, dir_fd=self._root)
        else:
            os.mknod(path, member.kind | 0o600, member.rdev, dir_fd=self._root)
        self._decorate(path, member)

    def _decorate(self, path: bytes, member: Member) -> None:
        root = self._root
        status = os.stat(path, dir_fd=root, follow_symlinks=False)
        if (status.st_uid, status.st_gid) != (member.uid, member.gid):
            os.chown(path, member.uid, member.gid, dir_fd=root, follow_symlinks=False)
        if member.kind != stat.S_IFLNK:
            os.chmod(path, member.mode, dir_fd=root)
        # After the owner, with which capabilities go.
        for name, value in member.xattrs.items():
            itself = b"/proc/self/fd/%d/%s" % (root, path)
            os.setxattr(itself, name, value, follow_symlinks=False)
        os.utime(path, ns=(member.mtime_ns, member.mtime_ns), dir_fd=root, follow_symlinks=False)

    # --- content

    def _make_file(self, path: bytes, nid: int) -> None:
        content = self._index.content(nid)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(path, flags, 0o600, dir_fd=self._root)
        try:
            if isinstance(content, Inline):
                os.write(fd, content.data)
            elif isinstance(content, Sparse):
                os.truncate(fd, content.size)
            else:
                self._copy(content, fd)
        finally:
            os.close(fd)

    def _copy(self, content: Object, target: int) -> None:
        if content.digest not in self._verified:
            self._objects.verify(content.digest)
            self._verified.add(content.digest)
        source = self._objects.open(content.digest)
        try:
            size = os.fstat(source).st_size
            os.truncate(target, size)
            position = 0
            while position < size:
                try:
                    start = os.lseek(source, position, os.SEEK_DATA)
                except OSError as error:
                    if error.errno != errno.ENXIO:
                        raise
                    break
                position = os.lseek(source, start, os.SEEK_HOLE)
                _copy_range(source, target, start, position)
        finally:
            os.close(source)


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    """Copy part of a file to the same place in another, sharing blocks where that can be."""
    while start < end:
        try:
            count = os.copy_file_range(source, target, end - start, start, start)
        except OSError as error:
            if error.errno not in _NO_RANGES:
                raise
            count = 0
        if not count:
            data = os.pread(source, min(end - start, _CHUNK_SIZE), start)
            if not data:
                return  # somebody cut it short; its digest was right a moment ago
            count = os.pwrite(target, data, start)
        start += count
