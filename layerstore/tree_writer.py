"""`TreeWriter`: the tree of an index as files in a directory. Blocks; one thread.

    auto      reflinks where the filesystem has them, else copies
    reflink   shares the blocks of the store's objects; refuses where it cannot
    copy      copies, holes left out
    hardlink  shares the objects themselves where that can be meant, else as `auto`

A hard link is the store's own file: read-only, of the store's owner, with the object's times, under
every name that has this content; and whoever writes to it in spite of that damages the store. So only
files are linked that nobody may execute and that have no xattrs, and their owner, their permission to
be written and their times are not those of the image. Everything else has everything.

Without privilege (as with `umoci unpack --rootless`) everything belongs to who asked for it, devices
are left out, and so are xattrs that only root may set; `Written` counts them. An export wants it exactly
as it is in the image, or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from layerstore import marks
from layerstore.errors import ObjectMissing, StoreError, show
from layerstore.index.reader import Index, Inline, Object, Sparse, Stat
from layerstore.objects import Objects, sync_filesystem
from layerstore.place import in_initial_user_namespace

MODES = ("auto", "reflink", "hardlink", "copy")

_FICLONE = 0x40049409
_NO_CLONE = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM)
_CHUNK = 1 << 20
_DEVICE = marks.TRUSTED.escape(marks.TRUSTED.whiteout)
"""What stands for a 0/0 device in an index, on an empty file."""
_RELEASE_EVERY = 1 << 13


@dataclass(slots=True)
class Written:
    """What was written, and what could not be without privilege.

    `bytes`: of all files, shared or not. `files`: regular ones; `linked`, `cloned`: of those, the ones that share an
    object or its blocks. `devices`, `xattrs`: left out.
    """

    entries: int = 0
    files: int = 0
    bytes: int = 0
    linked: int = 0
    cloned: int = 0
    devices: int = 0
    xattrs: int = 0


class TreeWriter:
    """Writes a tree. Paths are relative to its directory: however deep it is itself, what an image can hold
    can be reached.

    Args:
        index: of the image.
        objects: of its store.
        directory: an empty one, which becomes the root.
        mode: one of `MODES`.
        exact: nothing is left out: what needs privilege and has none is an error, also an owner. Every object is
            compared with its digest before it is taken, and the tree is on the disk in the end.
    """

    def __init__(
        self,
        index: Index,
        objects: Objects,
        directory: bytes,
        mode: str = "auto",
        *,
        exact: bool = False,
    ) -> None:
        self.written = Written()
        self.at = b"/"
        """What is being written, for messages."""
        self._index = index
        self._objects = objects
        self._mode = mode
        self._clones = mode != "copy"
        self._exact = exact
        self._privileged = exact or os.geteuid() == 0
        self._whole = exact or (self._privileged and in_initial_user_namespace())
        self._verified: set[str] = set()
        self._first: dict[int, bytes] = {}  # of files with several names
        self._release_at = _RELEASE_EVERY
        self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Nothing more will be written."""
        os.close(self._root)

    def write(self, report: Callable[[int], None] | None = None) -> None:
        """Write everything.

        Args:
            report: told the bytes of the files written so far.

        Raises:
            ObjectMissing, ObjectCorrupt: the store lacks an object, or (if `exact`) it is damaged.
            StoreError: the filesystem shares no blocks, and `mode` asks for that.
            OSError: from writing.
        """
        directories = [(b"", self._index.root_nid)]
        for path, directory in directories:
            if self.written.entries >= self._release_at:
                self._release_at = self.written.entries + _RELEASE_EVERY
                self._index.release()
            for name, nid, _ in self._index.entries(directory):
                child = os.path.join(path, name)
                self.at = b"/" + child
                self.written.entries += 1
                if stat.S_ISDIR(self._index.stat(nid).mode):
                    os.mkdir(child, 0o700, dir_fd=self._root)
                    directories.append((child, nid))
                else:
                    self._entry(child, nid)
            if report is not None:
                report(self.written.bytes)
        # Last, and from the bottom up: what is made in a directory changes its times, takes its
        # default ACL, and may need permissions that it will not have.
        for path, nid in reversed(directories):
            self.at = b"/" + path
            fd = os.open(path or b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._root)
            try:
                self._decorate(fd, nid)
            finally:
                os.close(fd)
        if self._exact:
            sync_filesystem(self._root)

    def _entry(self, path: bytes, nid: int) -> None:
        status = self._index.stat(nid)
        if status.nlink > 1:
            first = self._first.setdefault(nid, path)
            if first != path:
                self._link(first, path)
                return
        if stat.S_ISREG(status.mode):
            self._file(path, nid, status)
        elif stat.S_ISLNK(status.mode):
            os.symlink(self._index.readlink(nid), path, dir_fd=self._root)
            self._decorate_special(path, nid, status)
        else:
            self._device(path, nid, status, status.mode, status.rdev)

    def _link(self, first: bytes, path: bytes) -> None:
        if not self._privileged and self._is_left_out(first):
            return
        os.link(first, path, src_dir_fd=self._root, dst_dir_fd=self._root, follow_symlinks=False)

    def _is_left_out(self, path: bytes) -> bool:
        try:
            os.stat(path, dir_fd=self._root, follow_symlinks=False)
        except FileNotFoundError:
            return True
        return False

    def _device(self, path: bytes, nid: int, status: Stat, mode: int, rdev: int) -> None:
        """A device, or a FIFO."""
        try:
            os.mknod(path, mode, rdev, dir_fd=self._root)
        except PermissionError:
            if self._whole:
                raise
            self.written.devices += 1
            return
        self._decorate_special(path, nid, status)

    # --- files

    def _file(self, path: bytes, nid: int, status: Stat) -> None:
        xattrs = self._index.xattrs(nid)
        if not status.size and _DEVICE in xattrs and not self._exact:
            self._device(path, nid, status, stat.S_IFCHR | stat.S_IMODE(status.mode), 0)
            return
        self.written.files += 1
        self.written.bytes += status.size
        content = self._index.content(nid)
        if isinstance(content, Object) and self._exact and content.digest not in self._verified:
            self._objects.verify(content.digest)
            self._verified.add(content.digest)
        if isinstance(content, Object) and self._may_be_linked(status, xattrs):
            with contextlib.suppress(_CannotShare):
                self._link_object(content, path)
                return
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._root)
        try:
            if isinstance(content, Inline):
                _write(fd, content.data)
            elif isinstance(content, Sparse):
                os.ftruncate(fd, content.size)
            else:
                self._take(content, fd)
            self._decorate(fd, nid)
        finally:
            os.close(fd)

    def _may_be_linked(self, status: Stat, xattrs: dict[bytes, bytes]) -> bool:
        if self._mode != "hardlink" or stat.S_IMODE(status.mode) & 0o7111:
            return False
        return all(marks.TRUSTED.is_private(name) for name in xattrs)

    def _link_object(self, content: Object, path: bytes) -> None:
        source = self._objects.path(content.digest)
        try:
            os.link(source, path, dst_dir_fd=self._root)
        except FileNotFoundError:
            raise ObjectMissing(content.digest) from None
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.EMLINK, errno.EPERM):
                raise _CannotShare from None
            raise
        self.written.linked += 1

    def _take(self, content: Object, fd: int) -> None:
        """The content of an object, shared or copied."""
        source = self._objects.open(content.digest)
        try:
            if self._clones:
                try:
                    fcntl.ioctl(fd, _FICLONE, source)
                    self.written.cloned += 1
                    return
                except OSError as error:
                    if error.errno not in _NO_CLONE:
                        raise
                    if self._mode == "reflink":
                        raise StoreError(
                            f"{show(self._objects.directory)}: shares no blocks with the directory"
                            f" ({error.strerror}): --mode=copy does not need to"
                        ) from None
                    self._clones = False
            _copy(source, fd)
        finally:
            os.close(source)

    # --- attributes

    def _decorate(self, fd: int, nid: int) -> None:
        """Owner, mode, xattrs and times of a file or directory that is open."""
        status = self._index.stat(nid)
        if self._gives_away(os.fstat(fd), status):
            os.fchown(fd, status.uid, status.gid)
        os.fchmod(fd, stat.S_IMODE(status.mode))
        self._set_xattrs(fd, nid, follow=True)
        os.utime(fd, ns=(status.mtime_ns, status.mtime_ns))

    def _gives_away(self, found: os.stat_result, status: Stat) -> bool:
        """Whether what was made gets another owner."""
        owned = (found.st_uid, found.st_gid) == (status.uid, status.gid)
        return self._privileged and not owned

    def _decorate_special(self, path: bytes, nid: int, status: Stat) -> None:
        """The same for what cannot be opened."""
        found = os.stat(path, dir_fd=self._root, follow_symlinks=False)
        if self._gives_away(found, status):
            os.chown(path, status.uid, status.gid, dir_fd=self._root, follow_symlinks=False)
        if not stat.S_ISLNK(status.mode):
            os.chmod(path, stat.S_IMODE(status.mode), dir_fd=self._root)
        self._set_xattrs(b"/proc/self/fd/%d/%s" % (self._root, path), nid, follow=False)
        times = (status.mtime_ns, status.mtime_ns)
        os.utime(path, ns=times, dir_fd=self._root, follow_symlinks=False)

    def _set_xattrs(self, place: int | bytes, nid: int, *, follow: bool) -> None:
        for name, value in self._index.xattrs(nid).items():
            if marks.TRUSTED.is_private(name) or (name == _DEVICE and not self._exact):
                continue
            try:
                os.setxattr(place, marks.TRUSTED.unescape(name), value, follow_symlinks=follow)
            except PermissionError:
                if self._whole:
                    raise
                self.written.xattrs += 1


class _CannotShare(Exception):
    """A hard link is not possible here."""


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _copy(source: int, target: int) -> None:
    """Copy the data of a file, and leave holes where it has them."""
    size = os.fstat(source).st_size
    position = 0
    while position < size:
        try:
            start = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        position = os.lseek(source, start, os.SEEK_HOLE)
        _copy_run(source, target, start, position)
    os.ftruncate(target, size)


def _copy_run(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        try:
            count = os.copy_file_range(source, target, end - start, start, start)
        except OSError as error:
            if error.errno not in _NO_CLONE:
                raise
            count = os.pwrite(target, os.pread(source, min(end - start, _CHUNK), start), start)
        if not count:
            break  # cut short since it was looked at: scrub says so
        start += count
