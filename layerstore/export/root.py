"""The root filesystem of an image as one tar: what a mount of it shows.

In the same form as the tar that `dir:` imports (`layerstore.oci.tree_tar`): what came in from a
directory goes out as the same bytes. An image of one layer that hides nothing goes out as that
layer's tar, whatever form it has.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from layerstore import marks
from layerstore.commit.base import Base
from layerstore.index.reader import Index, Object
from layerstore.objects import Objects
from layerstore.oci import tar_writer


def is_whole(index: Index) -> bool:
    """Whether a layer is a root filesystem by itself: nothing in it is a whiteout or opaque, and
    every directory has an entry."""
    waiting = [index.root_nid]
    while waiting:
        directory = waiting.pop()
        xattrs = index.xattrs(directory)
        if marks.TRUSTED.opaque in xattrs:
            return False
        if marks.IMPLIED in xattrs and directory != index.root_nid:
            return False
        for _, nid, kind in index.entries(directory):
            if kind == stat.S_IFDIR >> 12:
                waiting.append(nid)
            elif kind == stat.S_IFCHR >> 12 and index.stat(nid).rdev == 0:
                return False
    return True


def root_tar(index: Index, objects: Objects) -> Iterator[bytes]:
    """The tar of an image.

    Args:
        index: of the image.
        objects: of its store.

    Raises:
        IndexCorrupt, ObjectMissing, ObjectCorrupt: something of it is damaged.
    """
    tree = Base(index, objects)
    first: dict[int, bytes] = {}  # the first name of each file that has several
    verified: set[str] = set()
    waiting = [(b"", tree.root)]
    while waiting:
        path, nid = waiting.pop()
        member = tree.member(nid)
        member.name = b"./" + path
        if member.kind == stat.S_IFSOCK:
            continue
        if member.kind == stat.S_IFDIR:
            member.name += b"/" if path else b""
            yield tar_writer.header(member)
            children = sorted(
                ((name, child) for name, child, _ in index.entries(nid)), reverse=True
            )
            waiting += [(os.path.join(path, name), child) for name, child in children]
            continue
        if index.stat(nid).nlink > 1:
            if nid in first:
                member.hard_link = first[nid]
                yield tar_writer.header(member)
                continue
            first[nid] = member.name
        if member.kind == stat.S_IFREG:
            content = index.content(nid)
            if isinstance(content, Object) and content.digest not in verified:
                objects.verify(content.digest)
                verified.add(content.digest)
            yield from tree.file(member, nid)
        else:
            yield tar_writer.header(member)
    yield tar_writer.END
