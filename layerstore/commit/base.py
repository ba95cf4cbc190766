"""The image below an upper, merged: what the upper's marks lead to. One thread."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from layerstore import marks
from layerstore.index import handles
from layerstore.index.reader import Index, Inline, Object
from layerstore.marks import Handle
from layerstore.objects import Objects
from layerstore.oci import tar_writer
from layerstore.oci.tar_writer import Member


class Base:
    """The tree of an image; inodes are meant by their nid.

    Args:
        index: of the image, all layers merged.
        objects: of its store.
    """

    def __init__(self, index: Index, objects: Objects) -> None:
        self._index = index
        self._objects = objects
        self._identity = handles.identity(index.path)
        self._links: dict[int, list[bytes]] | None = None

    @property
    def root(self) -> int:
        """The root directory."""
        return self._index.root_nid

    def child(self, directory: int, name: bytes) -> int | None:
        """What is at `name` in a directory."""
        return self._index.lookup(directory, name)

    def walk(self, components: tuple[bytes, ...]) -> int | None:
        """What is at a path from the root; symlinks are not followed."""
        nid = self.root
        for name in components:
            found = self.child(nid, name) if self.is_directory(nid) else None
            if found is None:
                return None
            nid = found
        return nid

    def names(self, directory: int) -> set[bytes]:
        """The names in a directory."""
        return {name for name, _, _ in self._index.entries(directory)}

    def is_directory(self, nid: int) -> bool:
        """Whether it is one."""
        return stat.S_ISDIR(self._index.stat(nid).mode)

    def is_file(self, nid: int) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self._index.stat(nid).mode)

    def links(self, nid: int) -> list[bytes]:
        """Every path of a file that has several."""
        return self._linked().get(nid, []) if self._index.stat(nid).nlink > 1 else []

    def _linked(self) -> dict[int, list[bytes]]:
        if self._links is None:
            self._links = self._find_links()
        return self._links

    def _find_links(self) -> dict[int, list[bytes]]:
        found: dict[int, list[bytes]] = {}
        waiting = [(b"", self.root)]
        while waiting:
            path, directory = waiting.pop()
            for name, nid, kind in self._index.entries(directory):
                below = os.path.join(path, name)
                if kind == stat.S_IFDIR >> 12:
                    waiting.append((below, nid))
                elif self._index.stat(nid).nlink > 1:
                    found.setdefault(nid, []).append(below)
        return found

    def is_another(self, handle: Handle) -> bool:
        """Whether a file handle is one of another image."""
        return handle.type == handles.TYPE and handle.uuid != self._identity

    def nid_of(self, handle: Handle) -> int | None:
        """The file that a file handle means, None if it is not one of this image."""
        nid = handles.nid_of(handle, self._identity)
        return nid if nid is not None and nid in self._linked() else None

    def member(self, nid: int) -> Member:
        """The attributes of an inode, without a name."""
        status = self._index.stat(nid)
        kind = stat.S_IFMT(status.mode)
        return Member(
            b"",
            kind,
            stat.S_IMODE(status.mode),
            status.uid,
            status.gid,
            status.mtime_ns,
            status.rdev,
            link=self._index.readlink(nid) if kind == stat.S_IFLNK else b"",
            xattrs={
                marks.TRUSTED.unescape(name): value
                for name, value in self._index.xattrs(nid).items()
                if not marks.TRUSTED.is_private(name)
            },
        )

    def file(self, member: Member, nid: int) -> Iterator[bytes]:
        """`member` as an entry of a tar, with the content of the regular file `nid`.

        Raises:
            ObjectMissing: the store does not hold it.
        """
        content = self._index.content(nid)
        if isinstance(content, Inline):
            yield from tar_writer.data(member, content.data)
        elif isinstance(content, Object):
            fd = self._objects.open(content.digest)
            try:
                yield from tar_writer.file(member, fd, self._objects.path(content.digest))
            finally:
                os.close(fd)
        else:
            yield from tar_writer.hole(member, content.size)
