"""A layer that is an image of the layer store: an EROFS index for the tree, objects for the content of its files.

References are the index's inode numbers (nids). That files point at objects by `metacopy` and `redirect` marks is the
index's own affair and does not show. Any thread.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Hashable, Iterator
from typing import TypeVar

from layerstore.errors import IndexCorrupt
from layerstore.index import handles
from layerstore.index.reader import Index, Inline, Object
from layerstore.index.reader import Stat as IndexStat
from layerstore.marks import OPAQUE_YES, TRUSTED, Handle, MarkInvalid, Marks, format_handle
from overlayfs_py.errors import OverlayError
from overlayfs_py.layers.content import BytesContent, FileContent
from overlayfs_py.layers.layer import Content, Found
from overlayfs_py.layers.tree import DT_CHR, DT_WHT, Row

T = TypeVar("T")

_DEVICE = TRUSTED.escape_prefix + b"whiteout"
_BLOCK_SIZE = 4096


class ImageLayer:
    """One index and the objects it refers to.

    Args:
        index: open, and from now on this layer's to close.
        objects: the directory of the store's objects.
        marks: the names that the mount uses for xattrs that look like marks (see `listxattr`).

    Attributes:
        identity: 16 bytes that stand for the image where a filesystem would have its uuid.
        objects_fd: the open directory of the objects.

    Raises:
        OSError: the objects directory cannot be opened.
    """

    local = True

    def __init__(self, index: Index, objects: bytes, marks: Marks) -> None:
        self.index = index
        self.marks = marks
        self.objects_fd = os.open(objects, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.identity = handles.identity(index.path)

    def close(self) -> None:
        os.close(self.objects_fd)
        self.index.close()

    def root(self) -> int:
        return self.index.root_nid

    def _ask(self, question: Callable[..., T], *arguments: object) -> T:
        try:
            return question(*arguments)
        except IndexCorrupt as error:
            raise OverlayError(errno.EIO, str(error), logging.ERROR) from None

    def find(self, parent: int, name: bytes, below: bool) -> Found | None:
        nid = self._ask(self.index.lookup, parent, name)
        if nid is None:
            return None
        known = self._ask(self.index.stat, nid)
        kind = stat.S_IFMT(known.mode)
        status = _stat(known)
        if kind == stat.S_IFCHR and known.rdev == 0:
            return Found(nid, status, whiteout=True)
        if kind == stat.S_IFDIR and below:
            marks = self._ask(self.index.xattrs, nid)
            return Found(nid, status, opaque=marks.get(TRUSTED.opaque) == OPAQUE_YES)
        if kind == stat.S_IFREG and known.size == 0:
            return Found(nid, status, device=_DEVICE in self._ask(self.index.xattrs, nid))
        return Found(nid, status)

    def stat(self, ref: int) -> os.stat_result:
        return _stat(self._ask(self.index.stat, ref))

    def rows(self, ref: int, *, quiet: bool = True) -> Iterator[Row]:
        entries = self.index.entries(ref)
        while True:
            entry = self._ask(next, entries, None)
            if entry is None:
                return
            name, nid, kind = entry
            if kind == DT_CHR and self._ask(self.index.stat, nid).rdev == 0:
                kind = DT_WHT
            yield Row(name, kind, nid)

    def readlink(self, ref: int) -> bytes:
        return self._ask(self.index.readlink, ref)

    def listxattr(self, ref: int) -> list[str]:
        """Names as the mount would store them: the index's own marks left out, and what the content has that looks
        like a mark escaped as the mount's own."""
        names = []
        for name in self._ask(self.index.xattrs, ref):
            if not TRUSTED.is_private(name):
                try:
                    names.append(os.fsdecode(self.marks.escape(TRUSTED.unescape(name))))
                except MarkInvalid:
                    continue
        return names

    def getxattr(self, ref: int, name: str | bytes) -> bytes:
        stored = TRUSTED.escape(self.marks.unescape(os.fsencode(name)))
        value = self._ask(self.index.xattrs, ref).get(stored)
        if value is None:
            raise OverlayError(errno.ENODATA)
        return value

    def open(self, ref: int) -> Content:
        content = self._ask(self.index.content, ref)
        if isinstance(content, Inline):
            return BytesContent(content.data)
        if not isinstance(content, Object):
            return BytesContent(b"", content.size)
        try:
            fd = os.open(content.path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.objects_fd)
        except FileNotFoundError:
            cause = f"object {content.digest} of {os.fsdecode(self.index.path)} is missing"
            raise OverlayError(errno.EIO, cause, logging.ERROR) from None
        return FileContent(fd)

    def device(self, status: os.stat_result) -> Hashable:
        return self.identity

    def handle(self, ref: int) -> bytes | None:
        return format_handle(handles.handle_of(self.identity, ref))

    def inode(self, handle: Handle) -> int | None:
        """The inode number in a handle that `handle` made, None for any other."""
        return handles.nid_of(handle, self.identity)

    def links(self, handle: Handle) -> int:
        """st_nlink of the object behind such a handle, 0 for any other."""
        nid = self.inode(handle)
        try:
            return 0 if nid is None else self.index.stat(nid).nlink
        except IndexCorrupt:
            return 0

    @property
    def statfs_fd(self) -> int:
        return self.objects_fd


def _stat(known: IndexStat) -> os.stat_result:
    seconds = known.mtime_ns // 1_000_000_000
    return os.stat_result(
        (
            known.mode,
            known.ino,
            0,
            known.nlink,
            known.uid,
            known.gid,
            known.size,
            seconds,
            seconds,
            seconds,
        ),
        {
            "st_atime_ns": known.mtime_ns,
            "st_mtime_ns": known.mtime_ns,
            "st_ctime_ns": known.mtime_ns,
            "st_blksize": _BLOCK_SIZE,
            "st_blocks": -(-known.size // 512),
            "st_rdev": known.rdev,
        },
    )
