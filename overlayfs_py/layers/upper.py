"""The writable layer: the upper directory, the work directory beside it, and changes that are
whole or absent.

Whatever takes more than one system call is put together under work/work and moved into the upper
by one rename, so that a crash leaves the tree as it was before or as it is after. The names inside
the work directory are the kernel's: `work` for what is unfinished, `index` for hard links that
were copied up.

Thread: the one that runs the verbs; only filling a staged file may happen elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import stat

from layerstore.marks import Marks, OverrideStat, format_override_stat
from overlayfs_py import syscalls
from overlayfs_py.errors import UserError
from overlayfs_py.layers.directory import DirectoryLayer
from overlayfs_py.layers.place import Named
from overlayfs_py.layers.tree import PrivateMount, Tree

log = logging.getLogger(__name__)

_STAGE = b"work"
_INDEX = b"index"
_INCOMPAT = b"work/incompat"
_VOLATILE = b"work/incompat/volatile"
_EXDEV_FREE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class Upper(DirectoryLayer):
    """Upper and work directory of one mount, already locked for it by whoever mounts.

    Args:
        path: the upper directory.
        work: the work directory, on the same filesystem.
        marks: which family of names marks are written with.
        volatile: nothing is synced, and a crash makes the upper untrusted (kernel's `volatile`).

    Raises:
        UserError: the directories do not fit together, or a volatile mount on them ended badly.
        OSError: one of them cannot be used.
    """

    _writable = True

    def __init__(self, path: bytes, work: bytes, marks: Marks, *, volatile: bool = False) -> None:
        path, work = os.path.realpath(path), os.path.realpath(work)
        # One clone for both: a rename from one clone to another would be one between filesystems.
        with contextlib.ExitStack() as opened:
            clone = PrivateMount.of(os.path.commonpath([path, work]), read_only=False)
            if clone is not None:
                opened.callback(clone.close)
                if not (clone.has(path) and clone.has(work)):
                    opened.close()
                    clone = None
            tree = Tree(path, False, clone)
            opened.callback(tree.close)
            self.work = Tree(work, False, clone)
            opened.callback(self.work.close)
            self._open(path, marks, tree, clone)
            opened.pop_all()
        self._numbers = itertools.count(1)
        self._volatile = volatile
        self.index_fd = -1
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        if self.work.dev != self.tree.dev:
            raise UserError(
                f"workdir {os.fsdecode(self.work.path)!r} is not on the filesystem of upperdir "
                f"{os.fsdecode(self.tree.path)!r}: put both on one filesystem"
            )
        work = self.work.fd
        self.stage_fd = self._open_private(_STAGE)
        if self._present(_VOLATILE):
            raise UserError(
                f"upperdir {os.fsdecode(self.tree.path)!r} was mounted volatile and not "
                f"unmounted cleanly, so its "
                f"content cannot be trusted: start with a new upper and work directory, or remove "
                f"{os.fsdecode(self.work.path + b'/' + _INCOMPAT)!r} to use it all the same"
            )
        self._clear_stage()
        if self._volatile:
            syscalls.mkdir(work, _INCOMPAT, 0o700)
            syscalls.mkdir(work, _VOLATILE, 0o700)
        self.device_whiteouts = self._can_make_device_whiteouts()

    def _open_private(self, name: bytes) -> int:
        """Make and open a directory inside the work directory."""
        work = self.work.fd
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
        with contextlib.suppress(FileExistsError):
            syscalls.mkdir(work, name, 0)
        try:
            return os.open(name, flags, dir_fd=work)
        except PermissionError:
            # Mode 0, as the kernel makes it, opens for privilege only.
            syscalls.chmod(work, name, 0o700)
            return os.open(name, flags, dir_fd=work)

    def _present(self, path: bytes) -> bool:
        try:
            self.work.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _clear_stage(self) -> None:
        """What a crash left unfinished was never visible, so it goes."""
        for row in list(self.work.scan(_STAGE)):
            remove_tree(self.work.fd, _STAGE + b"/" + row.name)

    def _can_make_device_whiteouts(self) -> bool:
        name = self.new_name()
        try:
            syscalls.mknod(self.stage_fd, name, stat.S_IFCHR, 0)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            log.warning(
                "no right to make 0/0 character devices here (Linux 5.8 allows it to everybody): "
                "whiteouts are "
                "written as empty files with the overlay.whiteout attribute"
            )
            return False
        syscalls.unlink(self.stage_fd, name)
        return True

    def close(self) -> None:
        for fd in (self.index_fd, getattr(self, "stage_fd", -1)):
            if fd >= 0:
                os.close(fd)
        self.work.close()
        super().close()

    def finish_volatile(self) -> None:
        """After the last sync of a clean unmount: the upper may be trusted again."""
        if self._volatile:
            # Runtimes detach lazily and remove the directories before we are through.
            with contextlib.suppress(FileNotFoundError):
                remove_tree(self.work.fd, _INCOMPAT)

    def use_override(self, kind: int) -> None:
        """Keep owners and modes in an xattr instead of the inode (fuse-overlayfs's xattr_permissions).

        Args:
            kind: 1 for the privileged xattr, 2 for the one any user may write.

        Raises:
            OSError: the root cannot be marked with it.
        """
        name = "security" if kind == 1 else "user"
        root = self.tree.at(b"")
        status = self.stat(b"")
        self.override = f"{name}.fuseoverlayfs.override_stat"
        try:
            root.getxattr(self.override)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            own = OverrideStat(status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
            root.setxattr(self.override, format_override_stat(own))

    # --- the index ----------------------------------------------------------------------------------------------------

    def open_index(self) -> bool:
        """Make and open work/index; False where the filesystem has no file handles."""
        if not self.filesystem.has_handles:
            return False
        self.index_fd = self._open_private(_INDEX)
        return True

    def index_place(self, name: bytes) -> Named:
        return Named(self.index_fd, name)

    # --- staging ------------------------------------------------------------------------------------------------------

    def new_name(self) -> bytes:
        return b"#%x" % next(self._numbers)

    def staged(self, name: bytes) -> Named:
        return Named(self.stage_fd, name)

    def stage_file(self) -> tuple[bytes, int]:
        """A new empty file, seen by nobody; its name in the stage and a descriptor to fill it."""
        name = self.new_name()
        return name, syscalls.create(self.stage_fd, name, os.O_RDWR | os.O_EXCL, 0o600)

    def commit(self, staged: bytes, path: bytes) -> None:
        """Give the staged object its place; a whiteout or a file there is replaced, by a directory
        only a whiteout.
        """
        place = self.tree.at(path)
        try:
            syscalls.rename(self.stage_fd, staged, place.dir_fd, place.path)
        except (NotADirectoryError, FileExistsError):
            # A directory over a whiteout: change places, then drop the whiteout.
            syscalls.rename(
                self.stage_fd, staged, place.dir_fd, place.path, syscalls.RENAME_EXCHANGE
            )
            syscalls.unlink(self.stage_fd, staged)

    def discard(self, staged: bytes) -> None:
        """Drop a staged object, whatever it is; never fails, since the next mount clears the
        stage.
        """
        try:
            remove_tree(self.stage_fd, staged)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("could not remove unfinished %r: %s", staged, error.strerror)

    # --- whiteouts ----------------------------------------------------------------------------------------------------

    def _stage_whiteout(self, path: bytes) -> bytes:
        name = self.new_name()
        if self.device_whiteouts:
            syscalls.mknod(self.stage_fd, name, stat.S_IFCHR, 0)
            return name
        os.close(syscalls.create(self.stage_fd, name, os.O_WRONLY | os.O_EXCL, 0o600))
        self.staged(name).setxattr(self.names.whiteout, b"y")
        self._announce_xwhiteouts(path.rpartition(b"/")[0])
        return name

    def _announce_xwhiteouts(self, directory: bytes) -> None:
        """Whiteouts that are attributes are looked for only where the root and the directory say
        so.
        """
        for where in (b"", directory):
            place = self.tree.at(where)
            with contextlib.suppress(OSError):
                if place.getxattr(self.names.opaque) in (b"x", b"y"):
                    continue
            place.setxattr(self.names.opaque, b"x")
        self.xwhiteouts = True

    def whiteout(self, path: bytes) -> None:
        """Hide what the lower layers have at `path`, where the upper has nothing."""
        if self.device_whiteouts:
            place = self.tree.at(path)
            syscalls.mknod(place.dir_fd, place.path, stat.S_IFCHR, 0)
        else:
            self.commit(self._stage_whiteout(path), path)

    def replace_by_whiteout(self, path: bytes, *, directory: bool) -> None:
        """Put a whiteout in the place of what the upper has at `path`, in one step."""
        place = self.tree.at(path)
        staged = self._stage_whiteout(path)
        try:
            flags = syscalls.RENAME_EXCHANGE if directory else 0
            syscalls.rename(self.stage_fd, staged, place.dir_fd, place.path, flags)
        except BaseException:
            self.discard(staged)
            raise
        if directory:
            self.tree.forget_steps()
            self.discard(staged)

    def unlink(self, path: bytes) -> None:
        place = self.tree.at(path)
        syscalls.unlink(place.dir_fd, place.path)

    def remove_directory(self, path: bytes) -> None:
        """Remove a directory that shows nothing, whatever whiteouts are left in it."""
        place = self.tree.at(path)
        self.tree.forget_steps()
        try:
            syscalls.rmdir(place.dir_fd, place.path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            staged = self.new_name()
            syscalls.rename(place.dir_fd, place.path, self.stage_fd, staged)
            self.discard(staged)

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        source, target = self.tree.at(old), self.tree.at(new)
        syscalls.rename(source.dir_fd, source.path, target.dir_fd, target.path, flags)
        self.tree.forget_steps()


def remove_tree(dir_fd: int, path: bytes) -> None:
    """Remove `path` and everything below; symlinks are removed, not followed.

    Raises:
        OSError: something could not be removed.
    """
    try:
        syscalls.unlink(dir_fd, path)
    except (IsADirectoryError, PermissionError):
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags, dir_fd=dir_fd)
        try:
            for name in os.listdir(fd):
                remove_tree(fd, os.fsencode(name))
        finally:
            os.close(fd)
        syscalls.rmdir(dir_fd, path)
