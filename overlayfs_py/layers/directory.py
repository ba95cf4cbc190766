"""A layer that is a directory of the host. References are paths relative to it. Any thread."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Hashable, Iterator

from layerstore.marks import (
    CONTAINERS_OVERRIDE_STAT,
    FUSE_OVERLAYFS,
    FUSE_OVERLAYFS_OVERRIDE_STAT,
    OCI_OPAQUE,
    OCI_WHITEOUT_PREFIX,
    OPAQUE_XWHITEOUTS,
    OPAQUE_YES,
    MarkInvalid,
    Marks,
    is_oci_meta,
    parse_override_stat,
)
from overlayfs_py.errors import OverlayError
from overlayfs_py.layers.content import FileContent
from overlayfs_py.layers.filehandle import Filesystem
from overlayfs_py.layers.layer import Found
from overlayfs_py.layers.place import Place
from overlayfs_py.layers.tree import DT_CHR, DT_REG, DT_WHT, PrivateMount, Row, Tree

DEVICES_MARK = "devices"
"""On a directory with escaped 0/0 devices in it (our own mark; the kernel passes over what it does not know)."""

_NO_MARKS: dict[str, bytes] = {}
_OVERRIDE_NAMES = (
    CONTAINERS_OVERRIDE_STAT.decode(),
    FUSE_OVERLAYFS_OVERRIDE_STAT.decode(),
    "security.fuseoverlayfs.override_stat",
)
_FUSE_OVERLAYFS_OPAQUE = FUSE_OVERLAYFS.opaque.decode()
_WHITEOUT_STAT = os.stat_result((stat.S_IFCHR, 0, 0, 1, 0, 0, 0, 0, 0, 0))
WHITEOUT = Found(None, _WHITEOUT_STAT, whiteout=True)


class DirectoryLayer:
    """The tree at `path`, marked with `marks` (the trusted.overlay or the user.overlay names).

    Raises:
        OSError: the directory is missing or cannot be opened.
    """

    local = True
    # Only the upper's symlinks and special files have marks (their origin).
    _writable = False
    # Set by the union: whether files may have their data in another layer (metacopy=on, data-only layers).
    follows_metacopy = False

    def __init__(self, path: bytes, marks: Marks) -> None:
        path = os.path.realpath(path)
        clone = PrivateMount.of(path, read_only=True)
        self._open(path, marks, Tree(path, True, clone), clone)

    def _open(self, path: bytes, marks: Marks, tree: Tree, clone: PrivateMount | None) -> None:
        self.path = path
        self.tree = tree
        self._clone = clone
        self.names = marks
        self._prefix = marks.prefix.decode()
        self.filesystem = Filesystem(self.tree.fd)
        root_marks = self._read_marks(self.tree.at(b""))
        self.xwhiteouts = root_marks.get("opaque") == OPAQUE_XWHITEOUTS
        self.override = self._override_name()

    def close(self) -> None:
        self.tree.close()
        if self._clone is not None:
            self._clone.close()

    def root(self) -> bytes:
        return b""

    def find(self, parent: bytes, name: bytes, below: bool, oci: bool = True) -> Found | None:
        """As Layer.find; `oci` False: the directory is known to have no `.wh.` names."""
        path = parent + b"/" + name if parent else name
        try:
            status = self.tree.stat(path)
        except FileNotFoundError:
            if below and oci and self._exists(parent, OCI_WHITEOUT_PREFIX + name):
                return WHITEOUT
            return None
        except NotADirectoryError:
            return None
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFREG:
            return self._find_file(path, status)
        if kind == stat.S_IFDIR:
            return self._find_directory(path, status, below)
        if kind == stat.S_IFCHR and status.st_rdev == 0:
            return WHITEOUT
        marks = self._read_marks(self.tree.at(path)) if self._writable else _NO_MARKS
        return Found(path, self._overridden(path, status), marks=marks)

    def find_root(self) -> Found:
        """The layer's root directory, with its marks."""
        return self._find_directory(b"", self.tree.stat(b""), True)

    def _find_file(self, path: bytes, status: os.stat_result) -> Found:
        if status.st_size and not self.follows_metacopy and not self._writable:
            # Nothing to learn but that it is a metacopy, which `open` refuses.
            return Found(path, self._overridden(path, status))
        marks = self._read_marks(self.tree.at(path))
        if not marks:
            return Found(path, self._overridden(path, status))
        if status.st_size == 0:
            if self.xwhiteouts and "whiteout" in marks:
                return WHITEOUT
            if "overlay.whiteout" in marks:
                return Found(path, status, device=True, marks=marks)
        return Found(
            path,
            self._overridden(path, status),
            redirect=marks.get("redirect"),
            metacopy="metacopy" in marks,
            marks=marks,
        )

    def _find_directory(self, path: bytes, status: os.stat_result, below: bool) -> Found:
        marks = self._read_marks(self.tree.at(path))
        if marks.get("opaque") == OPAQUE_XWHITEOUTS:
            # As ovl_layer_set_xwhiteouts(): from the first such directory on, the whole layer may have them.
            self.xwhiteouts = True
        opaque = marks.get("opaque") == OPAQUE_YES or (below and self._exists(path, OCI_OPAQUE))
        return Found(
            path,
            self._overridden(path, status),
            opaque=opaque,
            redirect=marks.get("redirect"),
            marks=marks,
        )

    def _exists(self, parent: bytes, name: bytes) -> bool:
        if len(name) > 255:
            return False
        try:
            self.tree.stat(parent + b"/" + name if parent else name)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _read_marks(self, place: Place) -> dict[str, bytes]:
        """The overlay marks of an object, by their names without the prefix."""
        try:
            names = place.listxattr()
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES):
                return _NO_MARKS
            raise
        if not names:
            return _NO_MARKS
        marks = {}
        for name in names:
            if name.startswith(self._prefix):
                marks[name[len(self._prefix) :]] = place.getxattr(name)
            elif name == _FUSE_OVERLAYFS_OPAQUE:
                marks["opaque"] = place.getxattr(name)
        return marks

    def _override_name(self) -> str | None:
        """The xattr that says whom the tree's files belong to, where fuse-overlayfs or containers/storage wrote it
        without the right to chown; its presence on the root says that the whole tree has it."""
        try:
            present = self.tree.at(b"").listxattr()
        except OSError:
            return None
        for name in _OVERRIDE_NAMES:
            if name in present:
                return name
        return None

    def _overridden(self, path: bytes, status: os.stat_result) -> os.stat_result:
        if self.override is None:
            return status
        try:
            raw = self.tree.at(path).getxattr(self.override)
        except OSError:
            return status
        return override_stat(status, raw)

    def marks(self, ref: bytes) -> dict[str, bytes]:
        """The overlay marks of an object, by their names without the prefix."""
        marks = self._read_marks(self.tree.at(ref))
        if marks.get("opaque") == OPAQUE_XWHITEOUTS:
            self.xwhiteouts = True
        return marks

    def has_oci_names(self, ref: bytes) -> bool:
        """Whether a directory has any `.wh.` name."""
        return any(row.name.startswith(OCI_WHITEOUT_PREFIX) for row in self.tree.scan(ref))

    def stat(self, ref: bytes) -> os.stat_result:
        return self._overridden(ref, self.tree.stat(ref))

    def rows(self, ref: bytes, *, quiet: bool = True) -> Iterator[Row]:
        """The names in a directory; whiteouts in all forms come as DT_WHT under the name they hide."""
        marks = self._read_marks(self.tree.at(ref))
        xwhiteouts = self.xwhiteouts and marks.get("opaque") == OPAQUE_XWHITEOUTS
        devices = DEVICES_MARK in marks
        for row in self.tree.scan(ref, quiet=quiet):
            if row.name.startswith(OCI_WHITEOUT_PREFIX):
                if not is_oci_meta(row.name):
                    yield Row(row.name[len(OCI_WHITEOUT_PREFIX) :], DT_WHT, 0)
            elif row.type == DT_REG and (xwhiteouts or devices):
                yield self._in_disguise(ref, row)
            else:
                yield row

    def _in_disguise(self, ref: bytes, row: Row) -> Row:
        """A regular file that may stand for a whiteout or a device."""
        found = self.find(ref, row.name, True)
        if found is not None and found.whiteout:
            return Row(row.name, DT_WHT, 0)
        if found is not None and found.device:
            return Row(row.name, DT_CHR, row.ino)
        return row

    def readlink(self, ref: bytes) -> bytes:
        return self.tree.at(ref).readlink()

    def listxattr(self, ref: bytes) -> list[str]:
        return self.tree.at(ref).listxattr()

    def getxattr(self, ref: bytes, name: str | bytes) -> bytes:
        return self.tree.at(ref).getxattr(name)

    def open(self, ref: bytes) -> FileContent:
        """Raises OSError: EPERM for a metacopy where metacopy=off, as in ovl_lookup()."""
        fd = self.tree.open(ref, os.O_RDONLY | os.O_NONBLOCK)
        if not self.follows_metacopy and _has_xattr(fd, self.names.metacopy):
            os.close(fd)
            cause = f"{ref!r} has only metadata: mount with metacopy=on"
            raise OverlayError(errno.EPERM, cause, logging.WARNING)
        return FileContent(fd)

    def device(self, status: os.stat_result) -> Hashable:
        return status.st_dev

    @property
    def statfs_fd(self) -> int:
        return self.tree.fd

    def handle(self, ref: bytes) -> bytes | None:
        place = self.tree.at(ref)
        return self.filesystem.handle(place.dir_fd, place.path)


def _has_xattr(fd: int, name: bytes) -> bool:
    try:
        os.getxattr(fd, name)
    except OSError:
        return False
    return True


def override_stat(status: os.stat_result, raw: bytes) -> os.stat_result:
    """`status` with the owner, mode and type that an override_stat xattr gives; unchanged if it makes no sense."""
    try:
        over = parse_override_stat(raw)
    except MarkInvalid:
        return status
    mode = (over.type or stat.S_IFMT(status.st_mode)) | over.mode
    rdev = os.makedev(over.major, over.minor) if over.major or over.minor else None
    return rebuilt_stat(status, mode, over.uid, over.gid, rdev)


def rebuilt_stat(
    status: os.stat_result, mode: int, uid: int, gid: int, rdev: int | None = None
) -> os.stat_result:
    return os.stat_result(
        (
            mode,
            status.st_ino,
            status.st_dev,
            status.st_nlink,
            uid,
            gid,
            status.st_size,
            int(status.st_atime),
            int(status.st_mtime),
            int(status.st_ctime),
        ),
        {
            "st_atime_ns": status.st_atime_ns,
            "st_mtime_ns": status.st_mtime_ns,
            "st_ctime_ns": status.st_ctime_ns,
            "st_blksize": status.st_blksize,
            "st_blocks": status.st_blocks,
            "st_rdev": status.st_rdev if rdev is None else rdev,
        },
    )
