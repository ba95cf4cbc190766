"""The root filesystem of an image as a directory tree: what `dir:` imports.

Owners, modes, times, xattrs, devices, hard links and holes are as in the image. Who is not root
cannot give files away: that is an error unless the image's files belong to them.
"""

from __future__ import annotations

import errno

from layerstore.errors import StoreError, show
from layerstore.index.reader import Index
from layerstore.objects import Objects
from layerstore.tree_writer import TreeWriter


def write_tree(index: Index, objects: Objects, directory: bytes, shown: bytes) -> None:
    """Write the tree of an image, and bring it to the disk.

    Args:
        index: of the image.
        objects: of its store.
        directory: an empty one, which becomes the root.
        shown: what to call it in messages.

    Raises:
        StoreError: something of the image is damaged, or may not be made.
    """
    tree = TreeWriter(index, objects, directory, exact=True)
    try:
        tree.write()
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP):
            raise
        raise StoreError(
            f"{show(shown)}: {show(tree.at)}: {error.strerror}: owners, devices and xattrs as the image"
            " has them need root on a filesystem that has them; podman unshare makes one root of"
            " one's own ids, and tar: needs neither"
        ) from None
    finally:
        tree.close()
