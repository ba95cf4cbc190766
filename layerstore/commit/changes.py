"""The entries of the layer that an upper directory amounts to over its base.

Two trees are walked together, and only where the upper has been: what the union shows, which the
upper's marks and the base say, and what the base has under the same path, which is what a layer is
laid over. Where both are the same directory only the upper's names count; where they are not (a
directory that was renamed, replaced or made opaque) every name does, and what the base has too much
is whited out name by name, as the OCI image spec (layer.md) would have it.

Hard links stay hard links: those in the upper, those of a directory of the base that has to be
copied, and, through work/index, names of a changed file that only the base has.

In order of names, so that the same upper gives the same layer. One thread.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import NamedTuple

from layerstore import marks
from layerstore.commit.base import Base
from layerstore.commit.upper import Found, Upper
from layerstore.errors import SourceInvalid, StoreError, show
from layerstore.oci import tar_writer
from layerstore.oci.tar_writer import Member

log = logging.getLogger(__name__)

_Key = tuple[int, int] | int
"""An inode: st_dev and st_ino of one in the upper, the nid of one in the base."""


class _Place(NamedTuple):
    """A directory of the union. `upper`: where the upper has it. `base`: the directory of the base that
    shows through it. `natural`: the one that the base has under this path."""

    path: bytes
    upper: bytes | None
    base: int | None
    natural: int | None


class UpperTar(tar_writer.Chunks):
    """The layer as a tar stream, to be read like a file.

    Args:
        upper: nobody may change it meanwhile.
        base: None: there is none; then an upper with marks that lead into one is refused.

    Reading raises:
        StoreError: the upper cannot be a layer over this base.
    """

    def __init__(self, upper: Upper, base: Base | None) -> None:
        self._upper = upper
        self._base = base
        self._root = upper.root()
        self._joined: dict[int, Found] = {}  # names in the base that are a file of work/index
        self._names: dict[_Key, bytes] = {}  # of files with several: the first that was written
        self._copied: set[int] = set()
        super().__init__(self._stream())

    def _stream(self) -> Generator[bytes, None, None]:
        if self._base is not None:
            for handle, found in self._upper.indexed():
                nid = self._base.nid_of(handle)
                if nid is not None:
                    # It has the base's names too, which are no links of it on the disk.
                    self._joined[nid] = replace(found, links=max(found.links, 2))
        root = self._root
        base = self._base.root if self._base is not None else None
        yield _directory(b"", root.member)
        waiting = [self._children(_Place(b"", root.path, None if root.opaque else base, base))]
        while waiting:
            item = next(waiting[-1], None)
            if item is None:
                waiting.pop()
            elif isinstance(item, _Place):
                waiting.append(self._children(item))
            else:
                yield item
        yield from self._remaining_links()
        yield tar_writer.END

    # --- one directory

    def _children(self, place: _Place) -> Iterator[bytes | _Place]:
        """The entries of a directory, and after that of a directory in it, where to go on."""
        rows = self._upper.rows(place.upper) if place.upper is not None else {}
        names = set(rows)
        if place.base != place.natural:
            for directory in (place.base, place.natural):
                if directory is not None:
                    assert self._base is not None
                    names |= self._base.names(directory)
        for name in sorted(names):
            path = os.path.join(place.path, name)
            found = rows.get(name)
            below, before = self._child(place.base, name), self._child(place.natural, name)
            if found is not None and not found.hides:
                yield from self._from_upper(path, found, place, below, before)
            elif found is None and below is not None:
                yield from self._from_base(path, below, before)
            elif before is not None:
                yield _whiteout(path)
            elif found is not None and self._base is None:
                self._refuse_without_base(found)

    def _child(self, directory: int | None, name: bytes) -> int | None:
        if directory is None:
            return None
        assert self._base is not None
        return self._base.child(directory, name)

    def _from_upper(
        self, path: bytes, found: Found, place: _Place, below: int | None, before: int | None
    ) -> Iterator[bytes | _Place]:
        if (found.redirect is not None and not found.opaque) or found.metacopy:
            below = self._follow(found, place, below)
        if found.is_directory:
            yield _directory(path, found.member)
            base = None if found.opaque else self._if_directory(below)
            yield _Place(path, found.path, base, self._if_directory(before))
        else:
            yield from self._file(path, found, below)

    def _from_base(self, path: bytes, nid: int, before: int | None) -> Iterator[bytes | _Place]:
        """What the base has, perhaps under another name."""
        assert self._base is not None
        if nid in self._joined:
            yield from self._file(path, self._joined[nid], nid)
        elif nid == before:
            return
        elif self._base.is_directory(nid):
            yield _directory(path, self._base.member(nid))
            yield _Place(path, None, nid, self._if_directory(before))
        else:
            yield from self._copy(path, nid)

    def _if_directory(self, nid: int | None) -> int | None:
        """`nid` if it is a directory: nothing merges with anything else."""
        if nid is None or self._base is None:
            return None
        return nid if self._base.is_directory(nid) else None

    def _follow(self, found: Found, place: _Place, below: int | None) -> int | None:
        """Where in the base a redirect leads, or the data of a metacopy is."""
        if self._base is None:
            self._refuse_without_base(found)
            return None
        if found.redirect is not None:
            absolute, components = found.redirect
            below = (
                self._base.walk(components) if absolute else self._child(place.base, components[0])
            )
        fits = self._base.is_directory if found.is_directory else self._base.is_file
        if below is None or not fits(below):
            where = b"/".join(found.redirect.components) if found.redirect else b"the same place"
            raise SourceInvalid(
                f"{show(found.path)}: goes on in the base at {show(where)}, where the base has"
                " nothing of its kind: name the image that this upper was made on"
            )
        return below

    def _refuse_without_base(self, found: Found) -> None:
        if found.member.kind == stat.S_IFSOCK:
            return
        what = "removes" if found.hides else "goes on with"
        raise StoreError(
            f"{show(found.path)}: {what} something of the image that this upper was made on:"
            " name that with --base IMAGE"
        )

    # --- one file

    def _file(self, path: bytes, found: Found, below: int | None) -> Iterator[bytes]:
        """A file of the upper, with its data in the base where it is a metacopy."""
        member = replace(found.member, name=path)
        if found.links > 1:
            first = self._names.setdefault(found.inode, path)
            if first != path:
                yield tar_writer.header(replace(member, hard_link=first))
                return
        if member.kind != stat.S_IFREG:
            yield tar_writer.header(member)
        elif found.metacopy:
            assert self._base is not None
            assert below is not None
            yield from self._base.file(member, below)
        else:
            yield from _content(member, found.path)

    def _copy(self, path: bytes, nid: int) -> Iterator[bytes]:
        """A file of the base under a name where the base has not got it."""
        assert self._base is not None
        member = replace(self._base.member(nid), name=path)
        if self._base.links(nid):
            first = self._names.setdefault(nid, path)
            self._copied.add(nid)
            if first != path:
                yield tar_writer.header(replace(member, hard_link=first))
                return
        if member.kind == stat.S_IFREG:
            yield from self._base.file(member, nid)
        else:
            yield tar_writer.header(member)

    # --- names that the upper has not seen

    def _remaining_links(self) -> Iterator[bytes]:
        """Names in the base, untouched by the upper, of files that are in the layer under another."""
        if self._base is None:
            return
        names = [
            (path, nid)
            for nid in {*self._joined, *self._copied}
            for path in self._base.links(nid)
            if self._shows(path)
        ]
        given: set[bytes] = set()
        for path, nid in sorted(names):
            yield from self._parents(path, given)
            if nid in self._joined:
                yield from self._file(path, self._joined[nid], nid)
            else:
                yield from self._copy(path, nid)

    def _shows(self, path: bytes) -> bool:
        """Whether the union has the base's file at its path in the base."""
        directory = self._upper.path
        if self._root.opaque:
            return False
        *parents, last = path.split(b"/")
        for name in parents:
            found = self._upper.find(directory, name)
            if found is None:
                return True
            if not found.is_directory or found.hides or found.opaque or found.redirect is not None:
                return False
            directory = found.path
        return self._upper.find(directory, last) is None

    def _parents(self, path: bytes, given: set[bytes]) -> Iterator[bytes]:
        """The directories on the way that the upper has not got, as the base has them: an engine makes
        what is missing with owner and mode of its own choice."""
        assert self._base is not None
        components = path.split(b"/")[:-1]
        directory = self._upper.path
        known = True
        for depth, name in enumerate(components, 1):
            if known:
                found = self._upper.find(directory, name)
                known = found is not None
                directory = os.path.join(directory, name)
            parent = b"/".join(components[:depth])
            if known or parent in given:
                continue
            given.add(parent)
            nid = self._base.walk(tuple(components[:depth]))
            assert nid is not None
            yield _directory(parent, self._base.member(nid))


def _directory(path: bytes, member: Member) -> bytes:
    return tar_writer.header(replace(member, name=path + b"/" if path else b"./"))


def _whiteout(path: bytes) -> bytes:
    directory, name = os.path.split(path)
    if len(name) > marks.NAME_MAX - len(marks.OCI_WHITEOUT_PREFIX):
        raise SourceInvalid(
            f"{show(path)}: was removed, which a layer cannot say of a name over 251 bytes: remove"
            " its directory, or put it back"
        )
    name = marks.OCI_WHITEOUT_PREFIX + name
    return tar_writer.header(Member(os.path.join(directory, name), stat.S_IFREG))


def _content(member: Member, path: bytes) -> Iterator[bytes]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise tar_writer.changed(path)
        yield from tar_writer.file(member, fd, path)
    finally:
        os.close(fd)
