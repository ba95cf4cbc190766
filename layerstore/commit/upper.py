"""An upper directory as it lies on the disk: what each name in it says of the union. Read-only, one
thread.

Marks are read in every form that a mount reads: whiteouts as 0/0 devices, as xattrs and as `.wh.`
names; `overlay.opaque`, `user.fuseoverlayfs.opaque` and `.wh..wh..opq`; owners and modes in an
`override_stat` xattr where the root of the upper has one.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from layerstore import marks
from layerstore.errors import SourceInvalid, StoreError, show
from layerstore.marks import MarkInvalid, Marks, Redirect
from layerstore.oci.tar_writer import Member, member_of
from layerstore.oci.tree_tar import xattrs_of

_OVERRIDES = (
    marks.CONTAINERS_OVERRIDE_STAT,
    marks.FUSE_OVERLAYFS_OVERRIDE_STAT,
    b"security.fuseoverlayfs.override_stat",
)
_NONE = (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES)


@dataclass(slots=True)
class Found:
    """What a name of the upper is.

    `hides`: nothing is shown under the name, whatever the base has. `member`: its attributes, without
    a name. `inode`: st_dev and st_ino. `links`: st_nlink. `opaque`, `redirect`: of a directory
    (`redirect` of a metacopy too). `metacopy`: the data is in the base.
    """

    path: bytes
    hides: bool = False
    member: Member = field(default_factory=lambda: Member(b"", 0))
    inode: tuple[int, int] = (0, 0)
    links: int = 1
    opaque: bool = False
    redirect: Redirect | None = None
    metacopy: bool = False

    @property
    def is_directory(self) -> bool:
        """Whether a directory is shown."""
        return self.member.kind == stat.S_IFDIR


class Indexed(NamedTuple):
    """A file of work/index: a hard link of the base that was copied up with all its names. `handle`
    is the base's file handle for it."""

    handle: marks.Handle
    found: Found


class Upper:
    """An upper directory.

    Args:
        path: of it.
        work: its work directory, None if that is not at hand: then hard links of the base whose
            names were not all used count as separate files, as they do for the kernel.
        family: the names of its marks.
    """

    def __init__(self, path: bytes, work: bytes | None, family: Marks) -> None:
        self.path = path
        self._work = work
        self._marks = family
        self._override = self._override_name()

    def _override_name(self) -> bytes | None:
        for name in _OVERRIDES:
            if _getxattr(self.path, name) is not None:
                return name
        return None

    def root(self) -> Found:
        """The upper directory itself.

        Raises:
            StoreError: it is no directory.
        """
        found = self._read(self.path)
        if found is None or not found.is_directory:
            raise StoreError(f"{show(self.path)}: is not a directory")
        return found

    def origin(self) -> marks.Handle | None:
        """The file handle of the directory that the upper was made over, where its root says so."""
        value = _getxattr(self.path, self._marks.origin)
        try:
            return None if value is None else marks.parse_handle(value)
        except MarkInvalid:
            return None

    def find(self, directory: bytes, name: bytes) -> Found | None:
        """What the upper has at `name` in its directory `directory` (a whole path), None for nothing."""
        found = self._read(os.path.join(directory, name))
        if found is not None:
            return found
        whiteout = os.path.join(directory, marks.OCI_WHITEOUT_PREFIX + name)
        if len(name) <= 251 and os.path.lexists(whiteout):
            return Found(whiteout, hides=True)
        return None

    def rows(self, directory: bytes) -> dict[bytes, Found]:
        """Every name in a directory (a whole path) of which the upper says something."""
        rows: dict[bytes, Found] = {}
        hidden: dict[bytes, Found] = {}
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            if name.startswith(marks.OCI_WHITEOUT_PREFIX):
                target = marks.oci_whiteout_target(name)
                if target is not None:
                    hidden[target] = Found(path, hides=True)
                continue
            found = self._read(path)
            if found is not None:
                rows[name] = found
        return {**hidden, **rows}

    def indexed(self) -> Iterator[Indexed]:
        """The files of work/index, in order of their names."""
        if self._work is None:
            return
        directory = os.path.join(self._work, b"index")
        try:
            names = sorted(os.listdir(directory))
        except FileNotFoundError:
            return
        for name in names:
            try:
                handle = marks.parse_handle(bytes.fromhex(os.fsdecode(name)))
            except ValueError:  # what is being made, `#1`, or another tool's
                continue
            found = self._read(os.path.join(directory, name))
            if handle is None or found is None or found.is_directory or found.hides:
                continue
            yield Indexed(handle, found)

    def _read(self, path: bytes) -> Found | None:
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if marks.is_device_whiteout(status.st_mode, status.st_rdev):
            return Found(path, hides=True)
        member = member_of(b"", status)
        # A socket lives as long as its process, and tar has no place for one: engines leave it out.
        hides = member.kind == stat.S_IFSOCK
        inode = (status.st_dev, status.st_ino)
        found = Found(path, hides, member, inode, status.st_nlink)
        own = self._sort(found, xattrs_of(path))
        if member.kind == stat.S_IFLNK:
            member.link = os.readlink(path)
        elif member.kind == stat.S_IFREG and not status.st_size:
            self._empty_file(found, own)
        self._apply_override(member, path)
        return found

    def _sort(self, found: Found, xattrs: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """Give the content's own xattrs to the member, marks to `found`; returns the marks."""
        own: dict[bytes, bytes] = {}
        for name, value in xattrs.items():
            if self._marks.is_private(name):
                own[name] = value
            elif name == marks.FUSE_OVERLAYFS.opaque:
                own.setdefault(self._marks.opaque, value)
            elif not name.startswith(marks.FUSE_OVERLAYFS_PREFIX) and name not in _OVERRIDES:
                found.member.xattrs[self._marks.unescape(name)] = value
        directory = found.is_directory
        found.metacopy = not directory and self._marks.metacopy in own
        if directory:
            opaque = own.get(self._marks.opaque) == marks.OPAQUE_YES
            found.opaque = opaque or os.path.lexists(os.path.join(found.path, marks.OCI_OPAQUE))
        redirect = own.get(self._marks.redirect)
        if redirect is not None and (directory or found.metacopy):
            try:
                found.redirect = marks.parse_redirect(redirect)
            except MarkInvalid as error:
                raise SourceInvalid(f"{show(found.path)}: {error}: this upper is damaged") from None
        return own

    def _empty_file(self, found: Found, own: dict[bytes, bytes]) -> None:
        """An empty file may stand for a whiteout, or for a 0/0 device."""
        if self._marks.whiteout in own:
            found.hides = True
            return
        # A device in a layer would be a whiteout to everybody; this form survives.
        value = found.member.xattrs.pop(self._marks.whiteout, None)
        if value is not None:
            found.member.xattrs[marks.TRUSTED.whiteout] = value

    def _apply_override(self, member: Member, path: bytes) -> None:
        if self._override is None:
            return
        value = _getxattr(path, self._override)
        if value is None:
            return
        try:
            override = marks.parse_override_stat(value)
        except MarkInvalid:
            return  # as a mount does
        member.uid, member.gid, member.mode = override.uid, override.gid, override.mode
        if override.type and member.kind == stat.S_IFREG and override.type != stat.S_IFLNK:
            member.kind = override.type
            member.rdev = os.makedev(override.major, override.minor)


def family_of(path: bytes, *, privileged: bool) -> Marks:
    """The names of an upper's marks: `user.overlay.*` if that is what its root has, or if it has none
    and whoever mounts here has no privilege.
    """
    try:
        names = [os.fsencode(name) for name in os.listxattr(path)]
    except OSError:
        names = []
    for family in (marks.TRUSTED, marks.USER):
        if any(family.is_private(name) for name in names):
            return family
    return marks.TRUSTED if privileged else marks.USER


def _getxattr(path: bytes, name: bytes) -> bytes | None:
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NONE:
            return None
        raise
