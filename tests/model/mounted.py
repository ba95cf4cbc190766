"""Subjects that are mounted: operations are system calls below the mountpoint."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import time
from collections.abc import Collection, Iterable

from tests.model import observe
from tests.model.layers import Layer, write_layer
from tests.model.observe import Seen

_libc = ctypes.CDLL(None, use_errno=True)
MS_RDONLY, MS_REMOUNT, MS_REC, MS_PRIVATE = 0x1, 0x20, 0x4000, 0x40000
MNT_DETACH = 2
AT_FDCWD = -100


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mount(source: bytes, target: bytes, kind: bytes, flags: int, options: bytes) -> None:
    """mount(2)."""
    _check(_libc.mount(source, target, kind, ctypes.c_ulong(flags), options))


def unmount(target: bytes) -> None:
    """umount(2), patient for as long as something asynchronous (a release on its way) holds the
    mount."""
    for _ in range(200):
        try:
            _check(_libc.umount2(target, 0))
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        time.sleep(0.01)
    detach(target)
    raise AssertionError(f"{target!r} was still busy when it was unmounted")


def detach(target: bytes) -> None:
    """umount(2), at once for this namespace and in the end for all."""
    _check(_libc.umount2(target, MNT_DETACH))


def renameat2(old: bytes, new: bytes, flags: int) -> None:
    _check(_libc.renameat2(AT_FDCWD, old, AT_FDCWD, new, flags))


def escape_option(path: bytes) -> bytes:
    """A path inside lowerdir=: backslash, colon and comma mean something there."""
    return path.replace(b"\\", b"\\\\").replace(b":", b"\\:").replace(b",", b"\\,")


class Scratch:
    """The directories of one union below `scratch`: lowers (top first), upper and work."""

    def __init__(self, scratch: bytes, stack: list[Layer]) -> None:
        self.scratch = scratch
        self._made = 0
        self.lowers: list[bytes] = []
        for layer in stack:
            directory = self._new_directory(b"lower")
            write_layer(layer, directory)
            self.lowers.append(directory)
        self._new_upper()

    def _new_directory(self, kind: bytes) -> bytes:
        self._made += 1
        path = os.path.join(self.scratch, b"%s%d" % (kind, self._made))
        os.mkdir(path)
        os.chmod(path, 0o755)
        return path

    def _new_upper(self) -> None:
        self.upper = self._new_directory(b"upper")
        self.work = self._new_directory(b"work")

    def directories(self) -> bytes:
        """The mount options that name them."""
        lowers = b":".join(map(escape_option, self.lowers))
        upper, work = escape_option(self.upper), escape_option(self.work)
        return b"lowerdir=%s,upperdir=%s,workdir=%s" % (lowers, upper, work)

    def rotate_directories(self) -> None:
        """The upper becomes the top lower, below a new upper and work directory."""
        shutil.rmtree(self.work)
        self.lowers.insert(0, self.upper)
        self._new_upper()


class Mounted(Scratch):
    """A union mounted at scratch/merged; a subclass says how."""

    name = "mounted"
    dialect = observe.Dialect()

    def __init__(self, scratch: bytes, stack: list[Layer], umask: int) -> None:
        super().__init__(scratch, stack)
        self.merged = os.path.join(scratch, b"merged")
        os.mkdir(self.merged)
        self.process_umask = umask
        self.handles: dict[int, int] = {}
        self.readable: dict[int, bool] = {}
        self.start()

    # What a subclass gives.

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        unmount(self.merged)

    # The subject's own operations.

    def close_all(self) -> None:
        for slot in list(self.handles):
            self.close(slot)

    def forget(self, seed: int) -> None:
        """Make the kernel drop what it holds of this mount alone: a remount shrinks its dentries
        and inodes."""
        mount(b"none", self.merged, b"none", MS_REMOUNT, b"")

    def remount(self) -> None:
        self.close_all()
        self.stop()
        self.start()

    def rotate(self, settle: list[bytes]) -> None:
        """`rotate_directories`, with the tree settled first.

        The index in the old work directory is what keeps a lower file with several names one file,
        so each of the paths `settle` gets its name in the upper: by renaming it and back.
        """
        self.close_all()
        for path in settle:
            full = self._at(path)
            parent = os.path.dirname(full)
            st = os.stat(parent)
            os.rename(full, parent + b"/.settling")
            os.rename(parent + b"/.settling", full)
            os.utime(parent, ns=(st.st_atime_ns, st.st_mtime_ns))
        self.stop()
        self.rotate_directories()
        self.start()

    def end(self) -> None:
        self.close_all()
        if os.path.ismount(self.merged):
            self.stop()

    def observe(self) -> tuple[dict[bytes, Seen], dict[int, Seen]]:
        held = {
            slot: observe.of_descriptor(fd, self.readable[slot])
            for slot, fd in self.handles.items()
        }
        return observe.of_directory(self.merged), held

    def glance(
        self, paths: Iterable[bytes], closely: Collection[bytes], slot: int | None
    ) -> tuple[dict[bytes, Seen], dict[int, Seen]]:
        """Attributes of everything; more of the paths `closely` and of the descriptor `slot`."""
        held = {
            number: observe.of_descriptor(fd, self.readable[number], number == slot)
            for number, fd in self.handles.items()
        }
        return observe.glance(self.merged, paths, closely), held

    # Operations, as `tree.Tree` has them.

    def _at(self, path: bytes) -> bytes:
        return self.merged + b"/" + path if path else self.merged

    def open(self, slot: int, path: bytes, flags: int, mode: int) -> None:
        fd = os.open(self._at(path), flags | os.O_NONBLOCK, mode)
        if slot in self.handles:
            self.close(slot)
        self.handles[slot] = fd
        self.readable[slot] = flags & os.O_ACCMODE != os.O_WRONLY

    def close(self, slot: int) -> None:
        os.close(self.handles.pop(slot))

    def pread(self, slot: int, offset: int, size: int) -> bytes:
        return os.pread(self.handles[slot], size, offset)

    def pwrite(self, slot: int, offset: int, data: bytes) -> int:
        return os.pwrite(self.handles[slot], data, offset)

    def ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self.handles[slot], size)

    def fchmod(self, slot: int, mode: int) -> None:
        os.fchmod(self.handles[slot], mode)

    def fchown(self, slot: int, uid: int, gid: int) -> None:
        os.fchown(self.handles[slot], uid, gid)

    def futimens(self, slot: int, atime_ns: int, mtime_ns: int) -> None:
        os.utime(self.handles[slot], ns=(atime_ns, mtime_ns))

    def fsetxattr(self, slot: int, name: bytes, value: bytes, flags: int) -> None:
        os.setxattr(self.handles[slot], name, value, flags)

    def fremovexattr(self, slot: int, name: bytes) -> None:
        os.removexattr(self.handles[slot], name)

    def fsync(self, slot: int) -> None:
        os.fsync(self.handles[slot])

    def create_at(self, slot: int, name: bytes, mode: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        os.close(os.open(name, flags, mode, dir_fd=self.handles[slot]))

    def write(self, path: bytes, offset: int, data: bytes) -> int:
        append = os.O_APPEND if offset < 0 else 0
        fd = os.open(self._at(path), os.O_WRONLY | os.O_NONBLOCK | append)
        try:
            return os.pwrite(fd, data, max(offset, 0))
        finally:
            os.close(fd)

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(self._at(path), size)

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(self._at(path), mode)

    def mknod(self, path: bytes, mode: int, rdev: int) -> None:
        os.mknod(self._at(path), mode, rdev)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, self._at(path))

    def link(self, old: bytes, new: bytes) -> None:
        os.link(self._at(old), self._at(new), follow_symlinks=False)

    def unlink(self, path: bytes) -> None:
        os.unlink(self._at(path))

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self._at(path))

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        renameat2(self._at(old), self._at(new), flags)

    def look(self, path: bytes) -> int:
        return os.lstat(self._at(path)).st_mode & 0o170000

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        os.lchown(self._at(path), uid, gid)

    def utimens(self, path: bytes, atime_ns: int, mtime_ns: int) -> None:
        os.utime(self._at(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        os.setxattr(self._at(path), name, value, flags, follow_symlinks=False)

    def removexattr(self, path: bytes, name: bytes) -> None:
        os.removexattr(self._at(path), name, follow_symlinks=False)
